"""Takes the place of `emulator.run` where a test is about processes: its configuration says how it behaves."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from tests.support.emulation import run_document
from tokencake_sglang.emulator.spec import RunSpec


def main() -> int:
    spec = RunSpec.from_dict(json.loads(Path(sys.argv[1]).read_text()))
    behaviour = spec.configuration.server_args.get("behaviour", "works")
    print('PROGRESS {"virtual_s": 5.0, "apps_done": 1, "apps": 2, "calls_done": 3}', file=sys.stderr, flush=True)
    if behaviour == "fails":
        print("a line before\nthe pool is too small", file=sys.stderr)
        return 3
    if behaviour == "hangs":
        Path(sys.argv[1]).with_suffix(".pid").write_text(str(os.getpid()))
        time.sleep(600)
    if behaviour == "writes rubbish":
        Path(sys.argv[2]).write_text("{}")
        return 0
    Path(sys.argv[2]).write_text(json.dumps(run_document(spec, [100.0, 200.0])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
