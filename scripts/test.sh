#!/usr/bin/env bash
# Set everything up and run the tests. Arguments go to pytest, for example: scripts/test.sh tests/unit -k index
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

set_up
cd "$ROOT"
export TOKENCAKE_STOCK_TREE="$STOCK" TOKENCAKE_DEMO_MODEL="$MODEL"
if [ "$#" -eq 0 ]; then set -- tests; fi
exec "$PYTHON" -m pytest "$@"
