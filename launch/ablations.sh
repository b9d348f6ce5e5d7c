#!/usr/bin/env bash
# Runs ablations (files of gin_configs/ablations) on one log and prints them as one table.
#   bash launch/ablations.sh --log my_log.parquet
#   bash launch/ablations.sh --log L --out work/ablations --only "no_pre no_soft_token" --gin.STEPS=1000
# What the runs have in common (log, mined pairs, vocabulary, ...) is made once, by the full run, and
# linked into the others. Interrupted, the same command goes on. Further words go to every `run`.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
log="" out="$root/work/ablations" config="gin_configs/two_cores.gin" more=()
only="no_pre completions_only paper_search no_alignment no_soft_token rq_kmeans"
only="$only enhance_0 enhance_03 enhance_07 sid_targets no_segments no_copying formula_ranking no_worth no_rwr"
usage() { sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
while [ $# -gt 0 ]; do
  case "$1" in
    --log) log="${2:-}"; shift 2 ;;
    --out) out="${2:-}"; shift 2 ;;
    --only) only="${2:-}"; shift 2 ;;
    --config) config="${2:-}"; shift 2 ;;
    --gin.*) more+=("$1"); shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "error: unknown word $1" >&2; usage >&2; exit 2 ;;
  esac
done
for name in $only; do
  if [ ! -f "$root/gin_configs/ablations/$name.gin" ]; then
    echo "error: no ablation $name; there are: $(cd "$root/gin_configs/ablations" && echo *.gin | sed 's/\.gin//g')" >&2
    exit 2
  fi
done

bash "$root/launch/prepare.sh"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
main=("$root/.venv/bin/python" -m onesug_jax.main)
common=("--gin_file=$config" ${log:+"--gin.LOG=$log"} ${more[@]+"${more[@]}"})
mkdir -p "$out"

echo "== full"
"${main[@]}" run "${common[@]}" "--gin.WORK_DIR=$out/full"
runs=(--run "$out/full")
for name in $only; do
  echo "== $name"
  # Links, not copies; a stage that must be redone writes a folder of its own.
  if [ ! -d "$out/$name" ]; then
    mkdir -p "$out/$name.new"
    for folder in simulated log mined encoder semantic_ids index ranking vocab examples pretrain rewards cascade .compiled; do
      if [ -d "$out/full/$folder" ]; then cp -al "$out/full/$folder" "$out/$name.new/"; fi
    done
    mv "$out/$name.new" "$out/$name"
  fi
  "${main[@]}" run "${common[@]}" "--gin_file=gin_configs/ablations/$name.gin" "--gin.WORK_DIR=$out/$name"
  runs+=(--run "$out/$name")
done
echo
"${main[@]}" compare "${runs[@]}"
