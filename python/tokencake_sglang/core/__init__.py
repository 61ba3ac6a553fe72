"""Pure policy and state: standard library only, no clock, no I/O, no torch, no sglang."""
