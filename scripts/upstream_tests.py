#!/usr/bin/env python3
"""Run SGLang's own unit tests on the stock package and on the patched one, and compare test by test.

usage: upstream_tests.py TEST_DIR --stock DIR [--patched DIR] [--out FILE]

TEST_DIR is the `test/` folder of an SGLang checkout that fits 0.5.17 (commit a9c3b5543 of the public history; the
wheel ships no tests and they are not part of this project). --stock is a folder that holds the pristine `sglang`
package (`python -m tokencake_sglang.patching export-stock DIR`); --patched defaults to the installed one.
Exit code 1 when a test that passes on stock does not pass on the patched package.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

UNIT = "registered/unit"
TESTS = [
    *(f"{UNIT}/mem_cache/test_{name}.py" for name in (
        "radix_cache_unit", "evict_policy", "registry", "radix_force_miss", "hiradix_cache_unit",
        "hiradix_pp_sync_drain", "hicache_load_back_timing", "streaming_session_unit", "paged_free_segment",
        "mem_cache_utils", "session_unified_radix_cache", "mem_pool_host")),
    *(f"{UNIT}/managers/test_{name}.py" for name in (
        "prefill_adder", "retraction_order", "scheduler_chunked_req_gate", "scheduler_hicache_attach",
        "scheduler_flush_cache", "kv_page_invariants", "io_struct", "msgpack_ipc_roundtrip", "fanout_communicator",
        "scheduler_recv_skipper", "schedule_batch_prepare_for_decode", "scheduler_pause_generation")),
    f"{UNIT}/plugins/test_hook_registry.py",
    f"{UNIT}/plugins/test_load_plugins.py",
    f"{UNIT}/test_server_args_cli_metadata.py",
    f"{UNIT}/test_server_args_namespaces.py",
    "manual/lang_frontend/test_choices.py",
    "manual/lang_frontend/test_separate_reasoning.py",
    "manual/lang_frontend/test_separate_reasoning_execution.py",
    "manual/test_schedule_policy.py",
]
LINE = re.compile(r"^(\S+::\S+) (PASSED|FAILED|SKIPPED|ERROR|XFAIL)", re.M)


def run(test: Path, package_dir: Path | None) -> dict[str, str]:
    """Outcome by test id; the package under test comes first on the path when given."""
    env = dict(os.environ, HF_HUB_OFFLINE="1")
    env.pop("TOKENCAKE_CONFIG", None)
    if package_dir is not None:
        env["PYTHONPATH"] = f"{package_dir}{os.pathsep}{env.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-c", os.devnull,
               f"--rootdir={test.parent}", test.name]
    done = subprocess.run(command, cwd=test.parent, env=env, capture_output=True, text=True, timeout=600)
    outcomes = dict(LINE.findall(done.stdout))
    if not outcomes and done.returncode not in (0, 5):
        outcomes[f"{test.name}::collection"] = "ERROR"
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test_dir", type=Path)
    parser.add_argument("--stock", type=Path, required=True)
    parser.add_argument("--patched", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    totals, broken, report = {"stock": 0, "patched": 0}, [], {}
    for name in TESTS:
        path = (args.test_dir / name).resolve()
        if not path.exists():
            print(f"{name}: not in this checkout")
            continue
        stock, patched = run(path, args.stock.resolve()), run(path, args.patched and args.patched.resolve())
        passed = [i for i, outcome in stock.items() if outcome == "PASSED"]
        lost = [i for i in passed if patched.get(i) != "PASSED"]
        broken += lost
        totals["stock"] += len(passed)
        totals["patched"] += sum(outcome == "PASSED" for outcome in patched.values())
        report[name] = {"stock": stock, "patched": patched}
        kept = len(passed) - len(lost)
        print(f"{name}: stock {len(passed)} of {len(stock)} passed, patched keeps {kept}", flush=True)
    print(f"{totals['stock']} passed on stock, {totals['patched']} on the patched package, {len(broken)} lost")
    for test in broken:
        print(f"LOST {test}")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))
    return 1 if broken or not totals["stock"] else 0


if __name__ == "__main__":
    sys.exit(main())
