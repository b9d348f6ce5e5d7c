#!/usr/bin/env bash
# Makes .venv with exactly the packages of requirements.lock.txt, unless it exists.
# The other launch scripts call it. PYTHON=/path/to/python chooses the interpreter (3.11 to 3.13).
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
lock="$root/requirements.lock.txt"
stamp="$venv/.prepared"

usable() {
  "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
    >/dev/null 2>&1
}

want="$(cksum <"$lock") $root"
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
  exit 0
fi

if ! usable "$venv/bin/python"; then
  found=""
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3 python; do
    if usable "$candidate"; then
      found="$candidate"
      break
    fi
  done
  if [ -z "$found" ]; then
    echo "error: no Python 3.11, 3.12 or 3.13 with the venv module was found on PATH." >&2
    echo "Install one (on Debian or Ubuntu: apt-get install python3 python3-venv)," >&2
    echo "or name it: PYTHON=/path/to/python3.12 bash launch/prepare.sh" >&2
    exit 2
  fi
  echo "[prepare] making .venv with $("$found" --version)"
  "$found" -m venv --clear "$venv"
fi

echo "[prepare] installing requirements.lock.txt (some minutes the first time)"
pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet)
if { "$venv/bin/python" -m uv --version >/dev/null 2>&1 || "${pip[@]}" install uv; } &&
  "$venv/bin/python" -m uv pip install --quiet --python "$venv/bin/python" -r "$lock"; then
  :
else
  echo "[prepare] uv failed; trying pip, which is slower"
  "${pip[@]}" install -r "$lock"
fi

echo "[prepare] checking that the packages work together"
PYTHONPATH="$root" "$venv/bin/python" -m onesug_jax.main doctor --imports
echo "$want" >"$stamp"
