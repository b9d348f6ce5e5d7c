#!/usr/bin/env bash
# Runs a table of ablations: each part of the design, or any files of gin_configs/ablations, on one log.
#   bash launch/ablations.sh --log my_log.parquet               a row for each part of the design, one seed
#   bash launch/ablations.sh --log L --seeds 3 --size small --out work/table
#   bash launch/ablations.sh --log L --only "vectors dpo" --gin.STEPS=1000
#   bash launch/ablations.sh --log L --dry_run                  prints what would be trained
# --only takes names of files and of sets: design (the default), text (the paper preset and its rows), vectors,
# rwr. --size is a file of gin_configs/models, --config another gin file (default: gin_configs/one_gpu.gin with a
# GPU, else two_cores.gin). --jobs N trains N rows at a time and logs to OUT/seed_S/ROW.log, because one small
# model leaves most of a GPU idle (default: 6 with a GPU, else 1). Other --gin words go to every run; the
# row's own file overrides them. Common results are made once and linked; seeds differ from pretraining on.
# After an interruption, the same command continues. The table is OUT/table.txt, its plot OUT/frontier.png.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
folder="$root/gin_configs/ablations"
log="" out="$root/work/ablations" config="" size="" seeds=1 jobs="" dry="" more=()
only="design"
design="no_relations no_dynamic_vocabulary no_soft_token no_history no_similar no_counts no_rwr pairwise_rwr paper"
text="paper no_pre generative_sft generative_dpo sid_targets"
vectors="no_alignment rq_kmeans plain_queries no_soft_token"
rwr="no_rwr sft_again dpo softmax_dpo pairwise_rwr rwr_hinge rwr_hinge_pair rwr_printed_pair rwr_printed_list"
rwr="$rwr alpha_01 alpha_1 beta_01 beta_1 delta_0 delta_1"
usage() { sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
while [ $# -gt 0 ]; do
  case "$1" in
    --log) log="${2:-}"; shift 2 ;;
    --out) out="${2:-}"; shift 2 ;;
    --only) only="${2:-}"; shift 2 ;;
    --config) config="${2:-}"; shift 2 ;;
    --size) size="${2:-}"; shift 2 ;;
    --seeds) seeds="${2:-}"; shift 2 ;;
    --jobs) jobs="${2:-}"; shift 2 ;;
    --dry_run) dry=1; shift ;;
    --gin.*) more+=("$1"); shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "error: unknown word $1" >&2; usage >&2; exit 2 ;;
  esac
done
if nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
  jobs="${jobs:-6}" config="${config:-gin_configs/one_gpu.gin}"
else
  jobs="${jobs:-1}" config="${config:-gin_configs/two_cores.gin}"
fi
for word in "seeds $seeds" "jobs $jobs"; do
  case "${word#* }" in
    [1-9] | [1-9][0-9]) ;;
    *) echo "error: --${word%% *} takes a number from 1 to 99, found '${word#* }'" >&2; exit 2 ;;
  esac
done
names=""
for name in $only; do
  case "$name" in
    design) names="$names $design" ;;
    text) names="$names $text" ;;
    vectors) names="$names $vectors" ;;
    rwr) names="$names $rwr" ;;
    *) names="$names $name" ;;
  esac
done
rows=""
for name in $names; do
  if [ ! -f "$folder/$name.gin" ]; then
    echo "error: no ablation $name; there are: design text vectors rwr (sets) $(cd "$folder" && echo *.gin | sed 's/\.gin//g')" >&2
    exit 2
  fi
  case " $rows " in *" $name "*) ;; *) rows="$rows $name" ;; esac
done

bash "$root/launch/prepare.sh"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
python="$root/.venv/bin/python"
main=("$python" -m onesug_jax.main)
# All seeds share one split, so that they show the variance of training alone.
common=("--gin_file=$config" ${log:+"--gin.LOG=$log"} ${size:+"--gin.MODEL=$size"}
  "--gin.simulate.seed=0" "--gin.ingest.seed=0")
# trained_anew NAME: whether a row's own file sets more than rwr's settings, so that it cannot share the
# pretraining of the full run or of an included row.
trained_anew() {
  sed -nE 's/^([A-Za-z_]+\/)?([A-Za-z_]+)\.[A-Za-z_]+ *=.*/\2/p' "$folder/$1.gin" |
    grep -qvxE 'rwr|PreferenceConfig|ListConfig|RewardConfig'
}
anew="" shared=""
for name in $rows; do
  if trained_anew "$name"; then anew="$anew $name"; else shared="$shared $name"; fi
done
echo "$config, $jobs at a time, $seeds seeds; trained anew: full$anew; from rwr on:${shared:- none}"
if [ -n "$dry" ]; then exec "${main[@]}" run --dry_run "${common[@]}" ${more[@]+"${more[@]}"} "--gin.WORK_DIR=$out/seed_0/full"; fi
mkdir -p "$out"
# A row's file must override the --gin words, but flags override files; so the words become a file.
settings="$(cd "$out" && pwd)/settings.gin"
printf '%s\n' "# settings of every run" ${more[@]+"${more[@]}"} |
  sed 's/^--gin\.\([^=]*\)=/\1 = /' >"$settings"
common+=("--gin_file=$settings")

# link_stages FROM TO STAGE...: makes links, not copies; a stage that runs again writes a new folder.
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
early=(simulated log mined encoder semantic_ids index vocab examples .compiled)

# Rows run in two waves: first those trained anew, then those that share their pretraining.
# With one job they print here; with several, each prints to its own file.
running=() failed=""
if [ "$jobs" -gt 1 ]; then
  export XLA_PYTHON_CLIENT_PREALLOCATE=false
  trap 'kill $(jobs -p) 2>/dev/null || true' EXIT # background jobs do not receive Ctrl-C
fi

# collect MANY: waits until fewer than MANY rows run, and prints the outcome of each that ended.
collect() {
  local most="$1" still word
  while [ "${#running[@]}" -ge "$most" ] && [ "${#running[@]}" -gt 0 ]; do
    still=()
    for word in "${running[@]}"; do # PID HOME NAME
      if kill -0 "${word%% *}" 2>/dev/null; then
        still+=("$word")
      else
        # shellcheck disable=SC2086  # words
        ended $word
      fi
    done
    running=(${still[@]+"${still[@]}"})
    if [ "${#running[@]}" -ge "$most" ]; then sleep 1; fi
  done
}

ended() { # PID HOME NAME
  if wait "$1"; then
    echo "== $3, ${2##*/}: done"
  else
    failed="$failed $2/$3.log"
    echo "== $3, ${2##*/}: FAILED; the end of $2/$3.log:" >&2
    tail -n 5 "$2/$3.log" >&2
  fi
}

all_done() { # the end of a wave
  collect 1
  if [ -n "$failed" ]; then
    echo "error: rows failed, see$failed; after a fix the same command continues" >&2
    exit 2
  fi
}

row() { # NAME SEED: one run, here or in the background
  local name="$1" seed="$2" home="$out/seed_$2"
  local words=(run "${common[@]}" "--gin.SEED=$seed" "--gin.WORK_DIR=$home/$name")
  if [ "$name" != full ]; then words+=("--gin_file=gin_configs/ablations/$name.gin"); fi
  echo "== $name, seed $seed"
  if [ "$jobs" = 1 ]; then
    "${main[@]}" "${words[@]}"
  else
    collect "$jobs"
    "${main[@]}" "${words[@]}" >>"$home/$name.log" 2>&1 </dev/null &
    running+=("$! $home $name")
  fi
}

# pretrained_in NAME SEED: the folder whose pretraining a row shares.
pretrained_in() {
  local other
  other="$(sed -n 's/^include "\(.*\)\.gin"/\1/p' "$folder/$1.gin")"
  case " $anew " in *" ${other:-none} "*) ;; *) other=full ;; esac
  echo "$out/seed_$2/$other"
}

runs=()
# table SEED...: trains all rows of these seeds and prints the table.
table() {
  local seed name home from
  for seed in "$@"; do
    home="$out/seed_$seed"
    mkdir -p "$home"
    for name in full $anew; do
      from="$out/seed_0/$name"
      if [ ! -d "$from/examples" ]; then from="$out/seed_0/full"; fi
      link_stages "$from" "$home/$name" "${early[@]}"
      row "$name" "$seed"
    done
  done
  all_done
  for seed in "$@"; do
    home="$out/seed_$seed"
    for name in $rows; do
      case " $anew " in *" $name "*) continue ;; esac
      link_stages "$(pretrained_in "$name" "$seed")" "$home/$name" "${early[@]}" pretrain rewards
      row "$name" "$seed"
    done
  done
  all_done
  for seed in "$@"; do
    for name in full $rows; do runs+=(--run "$out/seed_$seed/$name"); done
  done
  echo
  "${main[@]}" compare "${runs[@]}" --plot "$out/frontier.png" | tee "$out/table.txt"
}

first=("${common[@]}" "--gin.SEED=0" "--gin.WORK_DIR=$out/seed_0/full")
echo "== stages that all rows share"
"${main[@]}" run --until examples "${first[@]}"
if "$python" -c "import lightgbm" 2>/dev/null; then
  "${main[@]}" cascade "${first[@]}"
else
  echo "the cascade is omitted: it needs LightGBM ($python -m pip install 'lightgbm>=4.6,<5')"
fi
if [ "$jobs" = 1 ]; then
  for ((seed = 0; seed < seeds; seed++)); do table "$seed"; done # a table after each seed
else
  # shellcheck disable=SC2046  # words
  table $(seq 0 $((seeds - 1)))
fi
