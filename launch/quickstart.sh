#!/usr/bin/env bash
# From nothing to suggestions: prepares .venv, makes a simulated shop's log, trains on it, prints how
# the model compares with most popular completion, and shows a few lists. Run again, it skips what
# is done. Further words go to `python -m onesug_jax.main run`:
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
  echo "What the model suggests, without a history and with one:"
  show --k 6 --prefix "co"
  show --k 6 --prefix "co" --history "cotton jeans" --history "cotton skirt"
  show --k 6 --prefix "wireless "
  show --k 6 --prefix "wireless " --history "mechanical keyboard" --history "laptop stand"
fi

cat <<EOT

Everything is in $work; report/ holds the figures. Next:
  type and see      PYTHONPATH=$root ${main[*]} suggest --gin.WORK_DIR=$work
  your own log      bash launch/quickstart.sh --gin.LOG=PATH --gin.WORK_DIR=work/mine
  a larger model    bash launch/quickstart.sh --gin.MODEL=small --gin.WORK_DIR=work/small
  the tests         bash launch/test.sh
  all there is      PYTHONPATH=$root ${main[*]} --help
EOT
