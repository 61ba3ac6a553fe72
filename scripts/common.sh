# What demo.sh and test.sh share: a virtual environment with the package, the patched SGLang, a stock copy of SGLang to
# compare with, and the demo model. Every step is skipped when it was done before. Source this file from bash.
#
#   TOKENCAKE_VENV   an existing virtual environment to use as it is: nothing is installed into it

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
CACHE="$ROOT/.cache"
VENV="${TOKENCAKE_VENV:-$ROOT/.venv}"
PYTHON="$VENV/bin/python"
MODEL="$CACHE/demo-model"
STOCK="$CACHE/stock"
mkdir -p "$CACHE"
unset PYTHONDONTWRITEBYTECODE  # compiling a thousand modules anew in each process doubles the start of a server

say() { printf '\n--- %s\n' "$*"; }

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

find_python() {
  local name
  for name in python3.11 python3.12 python3.10 python3; do
    if command -v "$name" >/dev/null &&
       "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  fail "no Python 3.10, 3.11 or 3.12 was found on the PATH; SGLang 0.5.17 needs one of them."
}

# A number that changes with the content of the given files and folders.
fingerprint() {
  (cd "$ROOT" && find "$@" -type f ! -name '*.pyc' -print0 2>/dev/null | sort -z | xargs -0 cat | cksum | tr ' ' '-')
}

# once NAME STAMP COMMAND...: run the command unless it last succeeded with the same stamp.
once() {
  local name="$1" stamp="$2" marker="$CACHE/done-$1"
  shift 2
  if [ -f "$marker" ] && [ "$(cat "$marker")" = "$stamp" ]; then return; fi
  say "set-up: $name"
  rm -f "$marker"
  "$@" || fail "set-up step '$name' failed; the reason is above. Mend it and start again: finished steps are kept."
  printf '%s' "$stamp" > "$marker"
}

make_venv() {
  local python
  python="$(find_python)"
  "$python" -m venv "$VENV" ||
    fail "$python cannot create a virtual environment; on Debian and Ubuntu the package is called python3-venv."
}

install_package() {
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --retries 5 --timeout 60 -e "$ROOT[test,plots]" ||
    fail "pip could not install the package and sglang==0.5.17; is a package index reachable?"
}

# A tree that carries an older series of patches is refused: then SGLang itself is installed anew first.
apply_patches() {
  "$PYTHON" -m tokencake_sglang.patching apply && return
  say "installing an unchanged SGLang over the one that was found"
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall sglang==0.5.17 &&
    "$PYTHON" -m tokencake_sglang.patching apply
}

export_stock() {
  rm -rf "$STOCK"
  "$PYTHON" -m tokencake_sglang.patching export-stock "$STOCK"
}

make_model() {
  rm -rf "$MODEL"
  "$PYTHON" -m tokencake_sglang.cli demo-model "$MODEL"
}

set_up() {
  local where
  where="$(printf '%s' "$VENV" | cksum | tr ' ' '-')"
  if [ -z "${TOKENCAKE_VENV:-}" ]; then
    [ -x "$PYTHON" ] || { rm -f "$CACHE"/done-*; say "set-up: virtual environment"; make_venv; }
    once install "$where/$(fingerprint setup.py pyproject.toml)" install_package
    once patches "$where/$(fingerprint setup.py patches)" apply_patches
  else
    [ -x "$PYTHON" ] || fail "TOKENCAKE_VENV is $VENV, where there is no bin/python."
    export PYTHONPATH="$ROOT/python${PYTHONPATH:+:$PYTHONPATH}"
  fi
  once stock "$where/$(fingerprint setup.py patches)" export_stock
  once demo-model "$where/$(fingerprint python/tokencake_sglang/demo_model.py)" make_model
}
