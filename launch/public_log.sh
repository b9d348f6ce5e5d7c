#!/usr/bin/env bash
# The common part of amazonqac.sh and kuaisearch.sh, which call it; ONESUG_CONFIG is the gin file.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
config="${ONESUG_CONFIG:?run launch/amazonqac.sh or launch/kuaisearch.sh}"
name="$(basename "$config" .gin)"
data="" work="$root/work/$name" more=()
usage() { sed -n '2,6s/^# \{0,1\}//p' "$root/launch/$name.sh"; }
while [ $# -gt 0 ]; do
  case "$1" in
    --data) data="${2:-}"; shift 2 ;;
    --work) work="${2:-}"; shift 2 ;;
    --gin.* | --gin_file=* | --dry_run) more+=("$1"); shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "error: unknown word $1" >&2; usage >&2; exit 2 ;;
  esac
done
if [ -z "$data" ] || [ ! -e "$data" ]; then
  echo "error: --data ${data:-FOLDER}: no such folder; download the data and name its folder" >&2
  usage >&2
  exit 2
fi

bash "$root/launch/prepare.sh"
"$root/.venv/bin/python" "$root/launch/needs.py" --data "$data" --work "$work"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$root/.venv/bin/python" -m onesug_jax.main run "--gin_file=$root/$config" "--gin.LOG=$data" \
  "--gin.WORK_DIR=$work" ${more[@]+"${more[@]}"}
