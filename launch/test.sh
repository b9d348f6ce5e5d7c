#!/usr/bin/env bash
# Prepares .venv if needed and runs tests; other words go to pytest.
#   bash launch/test.sh                    tests of a few seconds each at most
#   bash launch/test.sh --all              also tests of less than a minute, as CI does
#   bash launch/test.sh --slow             tests of a minute and more
#   bash launch/test.sh tests/test_main.py -k macro
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/launch/prepare.sh"

marker="not slow"
case "${1:-}" in
  --all) shift ;;
  --slow) marker="slow" && shift ;;
  "" | -*) marker="not slow and not long" ;;
esac
cd "$root"
exec "$root/.venv/bin/python" -m pytest -q -m "$marker" -n "${WORKERS:-2}" --dist loadfile "$@"
