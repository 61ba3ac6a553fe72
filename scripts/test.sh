#!/usr/bin/env bash
# Set everything up and run the tests. Arguments go to pytest, for example: scripts/test.sh tests/unit -k index
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

set_up
cd "$ROOT"
export TOKENCAKE_STOCK_TREE="$STOCK" TOKENCAKE_DEMO_MODEL="$MODEL"
if [ "$#" -gt 0 ]; then exec "$PYTHON" -m pytest "$@"; fi
if [ "$(nproc)" -lt 2 ]; then exec "$PYTHON" -m pytest tests; fi

# Servers take most of the time, and little more than one core of it: everything else runs beside them, shown at the end.
others_log="$CACHE/other-tests.log"
set -m  # else the shell would have the other tests ignore an interrupt
"$PYTHON" -m pytest -p no:cacheprovider --ignore=tests/e2e tests > "$others_log" 2>&1 &
others=$!
set +m
end_others() {  # by an interrupt, so that they stop the servers that they have started
  kill -INT "$others" 2>/dev/null || return 0
  for _ in {1..100}; do
    kill -0 "$others" 2>/dev/null || return 0
    sleep 0.2
  done
  kill -TERM "$others"
}
trap end_others EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

servers_status=0 others_status=0
say "tests/e2e; all other tests run beside it"
"$PYTHON" -m pytest tests/e2e || servers_status=$?
wait "$others" || others_status=$?
say "all other tests"
cat "$others_log"
say "status of tests/e2e: $servers_status; of all other tests: $others_status"
[ "$servers_status" -eq 0 ] && [ "$others_status" -eq 0 ]
