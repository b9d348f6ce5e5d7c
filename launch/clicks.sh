#!/usr/bin/env bash
# Trains on a plain search log: any CSV or TSV (also JSONL, Parquet, .gz, .zst) with a user, a time and a query in
# each row, and optionally an opened or bought item. Columns are recognised by their names.
#   bash launch/clicks.sh searches.csv
#   bash launch/clicks.sh searches.tsv --work work/mine --gin.clicks.query=what --gin.clicks.time=moment
#   bash launch/clicks.sh searches.csv --gin.clicks.prefixes=letters --gin.ingest.dev_share=0.2
# Prints the recognised columns, trains with gin_configs/two_cores.gin (or another --gin_file=...), and compares the
# model with most popular completion. A second run continues.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
file="" work="" recipe="" more=()
usage() { sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
while [ $# -gt 0 ]; do
  case "$1" in
    --work) work="${2:-}"; shift 2 || { usage >&2; exit 2; } ;;
    --gin_file=*) recipe=yes; more+=("$1"); shift ;;
    --gin.* | --dry_run) more+=("$1"); shift ;;
    -h | --help) usage; exit 0 ;;
    -*) echo "error: unknown word $1" >&2; usage >&2; exit 2 ;;
    *)
      [ -z "$file" ] || { echo "error: expected one file or folder, found $file and $1" >&2; exit 2; }
      file="$1"; shift ;;
  esac
done
if [ -z "$file" ] || [ ! -e "$file" ]; then
  echo "error: ${file:-FILE}: no such file or folder; name the search log" >&2
  usage >&2
  exit 2
fi
name="$(basename "$file")"
work="${work:-$root/work/clicks-${name%%.*}}"
[ -n "$recipe" ] || more=("--gin_file=$root/gin_configs/two_cores.gin" ${more[@]+"${more[@]}"})

bash "$root/launch/prepare.sh"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
main=("$root/.venv/bin/python" -m onesug_jax.main)
"${main[@]}" run "--gin.LOG=$file" "--gin.WORK_DIR=$work" --gin.ingest.adapter=clicks ${more[@]+"${more[@]}"}
case " ${more[*]-} " in *" --dry_run "*) exit 0 ;; esac

cat <<EOT

Everything is in $work; report/ has the metrics, log/set_aside.jsonl the rows that could not be used. Next:
  type and see   PYTHONPATH=$root ${main[*]} suggest --gin.WORK_DIR=$work
  serve          PYTHONPATH=$root ${main[*]} serve --gin.WORK_DIR=$work
EOT
