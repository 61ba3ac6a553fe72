"""Takes the place of `emulator.run` where a test is about processes: its configuration says how it behaves."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from tests.support.emulation import run_document
from tokencake_sglang.emulator.spec import RunSpec

HOOKS: list[str] = []  # what a run changes in its process


def main(arguments: list[str]) -> int:
    spec_file, out = map(Path, arguments[:2])
    spec = RunSpec.from_dict(json.loads(spec_file.read_text()))
    behaviour = spec.configuration.server_args.get("behaviour", "works")
    print('PROGRESS {"virtual_s": 5.0, "apps_done": 1, "apps": 2, "calls_done": 3}', file=sys.stderr, flush=True)
    if behaviour == "fails":
        print("a line before\nthe pool is too small", file=sys.stderr)
        return 3
    if behaviour == "crashes":
        raise RuntimeError("the pool is torn")
    if behaviour == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "tells its state":
        state = {"environment": os.environ.get("TOKENCAKE_CONFIG"), "hooks": list(HOOKS)}
        os.environ["TOKENCAKE_CONFIG"] = "mine"
        HOOKS.append("mine")
        print(json.dumps(state), file=sys.stderr)
    if behaviour == "hangs":
        spec_file.with_suffix(".pid").write_text(str(os.getpid()))
        time.sleep(600)
    if behaviour == "writes rubbish":
        out.write_text("{}")
        return 0
    out.write_text(json.dumps(run_document(spec, [100.0, 200.0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
