"""Whether a history of what calls took can be kept in a file."""

from __future__ import annotations

import os
from pathlib import Path

from tokencake_sglang.core.errors import ConfigError

FLAG = "--tokencake-history"


def check_path(path: str) -> str:
    """The absolute path of a history that can be written. ConfigError otherwise; the file is left as it is."""
    target = Path(os.path.abspath(os.path.expanduser(path)))
    if not target.parent.is_dir():
        raise ConfigError(f"{FLAG} {path}: there is no folder {target.parent}. Make it, or give another"
                          " path.")
    if target.exists() and not target.is_file():
        raise ConfigError(f"{FLAG} {path} is not a file; allowed: a file of this server, or a new one."
                          " Give another path.")
    probe = f"{target}.new"
    try:
        with open(probe, "ab"):
            pass
        os.unlink(probe)
        if target.exists():
            with open(target, "r+b"):
                pass
    except OSError as error:
        raise ConfigError(f"{FLAG} {path} cannot be written: {error.strerror}. Give a path that can, in a"
                          " folder where new files can be made.") from None
    return str(target)
