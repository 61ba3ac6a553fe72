#!/usr/bin/env bash
# Set everything up, run both examples on the stock server and with TokenCake, and print the comparison.
# More arguments go to examples/compare.py, for example: scripts/demo.sh --apps 2 --modes stock stock-hicache tokencake
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run=""
end_run() {
  if [ -n "$run" ] && kill -0 "$run" 2>/dev/null; then
    kill -TERM "$run" 2>/dev/null || true
    wait "$run" || true
  fi
}
trap end_run EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

begin=$SECONDS
set_up
say "set-up is done after $((SECONDS - begin)) s"

"$PYTHON" "$ROOT/examples/compare.py" --model-path "$MODEL" --stock-tree "$STOCK" --out "$CACHE/demo.json" \
  --require-moves "$@" &
run=$!
status=0
wait "$run" || status=$?
run=""
say "the demo ended after $((SECONDS - begin)) s with status $status"
exit "$status"
