#!/usr/bin/env bash
# Runs the paper's table, or any files of gin_configs/ablations, on one log.
#   bash launch/ablations.sh --log my_log.parquet               the rows of the paper, one seed
#   bash launch/ablations.sh --log L --seeds 3 --size small --out work/table
#   bash launch/ablations.sh --log L --only "pre no_copying" --gin.STEPS=1000
#   bash launch/ablations.sh --log L --dry_run                  the budget alone
# --only takes names of files and of sets: paper (the default), pre, rwr. --size is a file of
# gin_configs/models. Further --gin words go to every run. What runs have in common is made once and
# linked; seeds differ from pretraining on. Interrupted, the same command goes on. The table stands
# in OUT/table.txt, its plot in OUT/frontier.png.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
folder="$root/gin_configs/ablations"
log="" out="$root/work/ablations" config="gin_configs/two_cores.gin" size="" seeds=1 dry="" more=()
only="paper"
paper="no_pre generative_sft generative_dpo no_rwr pairwise_rwr"
pre="no_pre completions_only paper_search no_alignment no_soft_token rq_kmeans enhance_0 enhance_03"
pre="$pre enhance_07 sid_targets no_segments no_copying formula_ranking history_10 no_worth no_ages plain_queries"
rwr="no_rwr sft_again dpo softmax_dpo pairwise_rwr rwr_hinge rwr_printed_pair rwr_printed_list"
rwr="$rwr negatives_1 negatives_2 negatives_8 no_not_show no_rand"
rwr="$rwr alpha_01 alpha_1 beta_01 beta_1 delta_0 delta_1"
usage() { sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
while [ $# -gt 0 ]; do
  case "$1" in
    --log) log="${2:-}"; shift 2 ;;
    --out) out="${2:-}"; shift 2 ;;
    --only) only="${2:-}"; shift 2 ;;
    --config) config="${2:-}"; shift 2 ;;
    --size) size="${2:-}"; shift 2 ;;
    --seeds) seeds="${2:-}"; shift 2 ;;
    --dry_run) dry=1; shift ;;
    --gin.*) more+=("$1"); shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "error: unknown word $1" >&2; usage >&2; exit 2 ;;
  esac
done
case "$seeds" in
  [1-9] | [1-9][0-9]) ;;
  *) echo "error: --seeds takes a number from 1 to 99, found '$seeds'" >&2; exit 2 ;;
esac
names=""
for name in $only; do
  case "$name" in
    paper) names="$names $paper" ;;
    pre) names="$names $pre" ;;
    rwr) names="$names $rwr" ;;
    *) names="$names $name" ;;
  esac
done
rows=""
for name in $names; do
  if [ ! -f "$folder/$name.gin" ]; then
    echo "error: no ablation $name; there are: paper pre rwr (sets) $(cd "$folder" && echo *.gin | sed 's/\.gin//g')" >&2
    exit 2
  fi
  case " $rows " in *" $name "*) ;; *) rows="$rows $name" ;; esac
done

bash "$root/launch/prepare.sh"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
python="$root/.venv/bin/python"
main=("$python" -m onesug_jax.main)
# One split for all seeds: they tell how far training alone moves the figures.
common=("--gin_file=$config" ${log:+"--gin.LOG=$log"} ${size:+"--gin.MODEL=$size"}
  "--gin.simulate.seed=0" "--gin.ingest.seed=0" ${more[@]+"${more[@]}"})
# shellcheck disable=SC2086  # words
"$python" "$root/launch/budget.py" --seeds "$seeds" ${log:+"--log=$log"} "${common[@]}" --rows $rows
if [ -n "$dry" ]; then exit 0; fi
mkdir -p "$out"

# link_stages FROM TO STAGE...: links, not copies; a stage that must be redone writes a folder anew.
link_stages() {
  local from="$1" to="$2" stage
  shift 2
  if [ -d "$to" ]; then return; fi
  mkdir -p "$to.new"
  for stage in "$@"; do
    if [ -d "$from/$stage" ]; then cp -al "$from/$stage" "$to.new/"; fi
  done
  mv "$to.new" "$to"
}
early=(simulated log mined encoder semantic_ids index ranking vocab examples .compiled)

runs=()
for ((seed = 0; seed < seeds; seed++)); do
  home="$out/seed_$seed"
  mkdir -p "$home"
  seeded=("${common[@]}" "--gin.SEED=$seed")
  echo "== full, seed $seed"
  if [ "$seed" = 0 ]; then
    "${main[@]}" run --until rank "${seeded[@]}" "--gin.WORK_DIR=$home/full"
    if "$python" -c "import lightgbm" 2>/dev/null; then
      "${main[@]}" cascade "${seeded[@]}" "--gin.WORK_DIR=$home/full"
    else
      echo "the cascade is left out: it needs LightGBM (pip install 'onesug_jax[cascade]')"
    fi
  else
    link_stages "$out/seed_0/full" "$home/full" "${early[@]}"
  fi
  "${main[@]}" run "${seeded[@]}" "--gin.WORK_DIR=$home/full"
  runs+=(--run "$home/full")
  for name in $rows; do
    echo "== $name, seed $seed"
    from="$(sed -n 's/^include "\(.*\)\.gin"/\1/p' "$folder/$name.gin")" # whose stages it shares
    if [ ! -d "$home/${from:=full}" ]; then from=full; fi
    link_stages "$home/$from" "$home/$name" "${early[@]}" pretrain rewards
    "${main[@]}" run "${seeded[@]}" "--gin_file=gin_configs/ablations/$name.gin" "--gin.WORK_DIR=$home/$name"
    runs+=(--run "$home/$name")
  done
  echo
  "${main[@]}" compare "${runs[@]}" --plot "$out/frontier.png" | tee "$out/table.txt"
done
