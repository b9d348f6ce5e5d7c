#!/usr/bin/env bash
# Builds the documents as a site in build/docs, with warnings as errors.
#   bash launch/docs.sh
#   bash launch/docs.sh --serve   serves it at http://127.0.0.1:8001, and rebuilds it after edits
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/launch/prepare.sh"
python="$root/.venv/bin/python"
if ! "$python" -c "import material, mkdocstrings_handlers.python" 2>/dev/null; then
  "$python" -m uv pip install --quiet --python "$python" --requirements "$root/pyproject.toml" --extra docs
fi
export NO_MKDOCS_2_WARNING=1
cd "$root"
case "${1:-}" in
  --serve) exec "$python" -m mkdocs serve --dev-addr 127.0.0.1:8001 ;;
  "") exec "$python" -m mkdocs build --quiet ;;
  *)
    echo "error: unknown word $1; expected --serve or nothing" >&2
    exit 2
    ;;
esac
