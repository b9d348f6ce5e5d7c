#!/usr/bin/env bash
# Prepares .venv if need be and runs the tests; further words go to pytest.
#   bash launch/test.sh                    everything that takes less than a minute a test
#   bash launch/test.sh --slow             the others
#   bash launch/test.sh tests/test_main.py -k macro
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/launch/prepare.sh"

marker="not slow"
if [ "${1:-}" = "--slow" ]; then
  marker="slow"
  shift
fi
cd "$root"
exec "$root/.venv/bin/python" -m pytest -q -m "$marker" -n "${WORKERS:-2}" --dist loadfile "$@"
