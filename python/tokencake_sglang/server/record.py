"""Whether a recording can be made: its path, and the combinations of SGLang flags in which rank 0 sees all requests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tokencake_sglang.core.errors import ConfigError

FLAG = "--tokencake-record"
ENDINGS = (".csv", ".jsonl")
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "dp_size": ((1,), "requests are spread over several schedulers, and one trace is written by one"),
    "pp_size": ((1,), "only the stage that receives requests would see them, and not when they end"),
    "disaggregation_mode": (("null",), "each of the two servers sees one half of a request"),
    "is_embedding": ((False, None), "embedding models generate nothing, and a trace is of generations"),
    "encoder_only": ((False, None), "an encoder server generates nothing"),
    "use_ray": ((False, None), "plugins are not loaded in Ray actors"),
}


def check_path(path: str) -> str:
    """The absolute path of a trace that can be written now. ConfigError otherwise; nothing is left on disk."""
    target = Path(os.path.abspath(os.path.expanduser(path)))
    if target.suffix not in ENDINGS:
        raise ConfigError(f"{FLAG} {path} ends in {target.suffix!r}; allowed: {', '.join(ENDINGS)}."
                          " Give it the ending of the layout that you want.")
    if not target.parent.is_dir():
        raise ConfigError(f"{FLAG} {path}: there is no folder {target.parent}. Make it, or give another path.")
    if target.exists() and not target.is_file():
        raise ConfigError(f"{FLAG} {path} is not a file; allowed: a new or empty file. Give another path.")
    existed = target.exists()
    try:
        with open(target, "ab") as file:
            size = file.tell()
    except OSError as error:
        raise ConfigError(f"{FLAG} {path} cannot be written: {error.strerror}. Give a path that can.") from None
    if not existed:
        target.unlink()
    if size:
        raise ConfigError(f"{FLAG} {path} holds {size} bytes already; allowed: a new or empty file, so that no"
                          " recording is lost. Give another name, or move that file away.")
    return str(target)


def check(server_args: Any) -> None:
    """Raise ConfigError when a server of these ServerArgs (or parsed flags) cannot be recorded."""
    for name, (allowed, reason) in REFUSED.items():
        value = getattr(server_args, name)
        if value not in allowed:
            flag = "--" + name.replace("_", "-")
            found = flag if value is True else f"{flag} {value}"
            raise ConfigError(f"{FLAG} cannot be used with {found}: {reason}. Leave one of them out.")
