#!/usr/bin/env bash
# Prepares .venv, simulates a shop's log, trains on it, compares the model with most popular completion,
# and shows a few lists. A second run skips finished steps. Other words go to
# `python -m onesug_jax.main run`:
#   bash launch/quickstart.sh
#   bash launch/quickstart.sh --gin.LOG=my_log.parquet --gin.WORK_DIR=work/mine
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/launch/prepare.sh"

work="${WORK_DIR:-$root/work/quickstart}"
own_log=""
for word in "$@"; do
  case "$word" in
    --gin.WORK_DIR=*) work="${word#*=}" ;;
    --gin.LOG=*) own_log=yes ;;
  esac
done
main=("$root/.venv/bin/python" -m onesug_jax.main)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

"${main[@]}" run --gin_file=gin_configs/quickstart.gin "--gin.WORK_DIR=$work" "$@"
case " $* " in *" --dry_run "*) exit 0 ;; esac

show() {
  echo
  "${main[@]}" suggest "--gin.WORK_DIR=$work" "$@"
}
if [ -z "$own_log" ]; then
  echo
  echo "Lists of the model, without a history and with one:"
  show --k 6 --prefix "co"
  show --k 6 --prefix "co" --history "cotton jeans" --history "cotton skirt"
  show --k 6 --prefix "wireless "
  show --k 6 --prefix "wireless " --history "mechanical keyboard" --history "laptop stand"
fi

cat <<EOT

Everything is in $work; report/ has the metrics. Next:
  type and see      PYTHONPATH=$root ${main[*]} suggest --gin.WORK_DIR=$work
  your own log      bash launch/quickstart.sh --gin.LOG=PATH --gin.WORK_DIR=work/mine
  a larger model    bash launch/quickstart.sh --gin.MODEL=small --gin.WORK_DIR=work/small
  the tests         bash launch/test.sh
  all commands      PYTHONPATH=$root ${main[*]} --help
EOT
