"""SGLang's real scheduler in virtual time, on a modelled device."""
