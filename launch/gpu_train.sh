#!/usr/bin/env bash
# Trains on GPUs of one or several hosts, with plain processes, which find each other by
# ONESUG_PROCESSES, ONESUG_PROCESS and ONESUG_COORDINATOR. If one fails, the others are stopped
# (SIGTERM, then SIGKILL), and the exit code is that of the first failure. The same command
# continues from the last checkpoint.
#
#   bash launch/gpu_train.sh [flags] -- [words for `python -m onesug_jax.main run`]
#   bash launch/gpu_train.sh -- --gin_file=gin_configs/serving.gin --gin.LOG=my_log.parquet
#   bash launch/gpu_train.sh --hosts=gpu1,gpu2 -- --gin.LOG=/shared/log --gin.WORK_DIR=/shared/work
#   sbatch --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --wrap "bash launch/gpu_train.sh -- .."
#
# One host: one process over all its GPUs. Several hosts: one process on each, by ssh without a
# password. All hosts must share this folder, WORK_DIR and LOG (the last two may be gs:// URLs).
# Inside a SLURM allocation: one process per task, by srun; --print_sbatch prints a command that
# requests an allocation.
#
# Flags, --flag=VALUE or --flag VALUE, and the environment variables that set their defaults:
#   --hosts            GPU_HOSTS          this host; several separated by commas, process 0 first
#   --processes        GPU_PROCESSES      1; processes of this host, which divide its GPUs
#   --port             GPU_PORT           random, or from SLURM's job id; process 0 listens there
#   --grace_seconds    GPU_GRACE_SECONDS  60; from SIGTERM to SIGKILL
#   --python           ONESUG_PYTHON      .venv/bin/python, made with the CUDA packages if needed
#   --print_sbatch                        print the sbatch command, for --nodes (2) nodes with
#   --nodes, --gpus_per_node              --gpus_per_node (8) GPUs each
#   --dry_run                             print every command, run none
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
self="$root/launch/gpu_train.sh"
usage() { sed -n '2,/^set -euo/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }
mistake() { echo "error: $1" >&2 && exit 2; }
arguments=("$@")

# ------------------------------------------------------------------ flags

hosts="${GPU_HOSTS:-}" processes="${GPU_PROCESSES:-1}" port="${GPU_PORT:-}"
grace_seconds="${GPU_GRACE_SECONDS:-60}" python="${ONESUG_PYTHON:-}"
nodes=2 gpus_per_node=8 print_sbatch="" dry_run="" leashed=""
while [ $# -gt 0 ]; do
  flag="${1%%=*}"
  case "$flag" in
    --hosts | --processes | --port | --grace_seconds | --python | --nodes | --gpus_per_node)
      if [ "$flag" != "$1" ]; then
        value="${1#*=}"
      elif [ $# -gt 1 ] && [[ "$2" != --* ]]; then
        value="$2"
        shift
      else
        mistake "$flag needs a value: $flag=VALUE"
      fi
      printf -v "${flag#--}" %s "$value"
      ;;
    --print_sbatch | --dry_run | --leashed)
      [ "$flag" = "$1" ] || mistake "$flag takes no value, found $1"
      printf -v "${flag#--}" 1
      ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    --gin*) mistake "$flag is for the training: write it after \`--\`" ;;
    *) mistake "unknown flag $1; --help lists the flags; words for the training follow \`--\`" ;;
  esac
  shift
done
for name in processes nodes gpus_per_node; do
  [[ "${!name}" =~ ^[1-9][0-9]*$ ]] || mistake "--$name=${!name}: expected a number from 1 on"
done
[[ "$port" =~ ^[0-9]*$ ]] || mistake "--port=$port: expected a number"
[[ "$grace_seconds" =~ ^[0-9]+$ ]] || mistake "--grace_seconds=$grace_seconds: expected a whole number"
IFS=, read -ra hosts <<<"$hosts"
if [ "${#hosts[@]}" -gt 0 ] && [ "$processes" -gt 1 ]; then
  mistake "--processes is for one host; --hosts starts one process on each"
fi

show() { # prints a command, quoted
  local word text=""
  for word in "$@"; do
    if [[ "$word" =~ ^[A-Za-z0-9_./:=@,+-]+$ ]]; then text+=" $word"; else text+=" ${word@Q}"; fi
  done
  echo "${text# }"
}

if [ -n "$print_sbatch" ]; then
  printf -v line ' %q' bash "$self" -- "$@"
  show sbatch "--nodes=$nodes" --ntasks-per-node=1 "--gpus-per-node=$gpus_per_node" --wrap "${line# }"
  exit 0
fi

# ------------------------------------------------------------------ python

gpus() { # the number of visible GPUs
  if [ "${JAX_PLATFORMS:-}" = cpu ] || ! command -v nvidia-smi >/dev/null; then
    echo 0
  elif [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .
  else
    nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true
  fi
}

prepare() { # makes the environment, which all hosts share
  if [ -n "$python" ]; then return; fi
  python="$root/.venv/bin/python"
  if [ -n "$dry_run" ]; then
    show bash "$root/launch/prepare.sh"
    return
  fi
  bash "$root/launch/prepare.sh"
  if ! "$python" -c 'import jax_cuda12_plugin' 2>/dev/null; then
    if [ "$(gpus)" -gt 0 ] || [ "${#hosts[@]}" -gt 0 ] || [ -n "${SLURM_JOB_ID:-}" ]; then
      echo "[gpu] installing the CUDA packages"
      "$python" -m uv --version >/dev/null 2>&1 || "$python" -m pip install --quiet uv
      "$python" -m uv pip install --quiet --python "$python" \
        -c "$root/requirements.lock.txt" -e "${root}[cuda]"
    fi
  fi
}

export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

# ------------------------------------------------------------------ one process of several

if [ -n "$leashed" ]; then # on another host: ends when standard input, the connection, ends
  exec 3<&0
  "${python:-$root/.venv/bin/python}" -m onesug_jax.main run "$@" 3<&- </dev/null &
  training=$!
  {
    cat <&3
    kill -TERM "$training" && sleep "$grace_seconds" && kill -KILL "$training"
  } >/dev/null 2>&1 & # without ssh's output, which ssh would wait for
  leash=$!
  code=0
  wait "$training" || code=$?
  kill "$leash" 2>/dev/null || true
  exit "$code"
fi

if [ -n "${SLURM_STEP_NODELIST:-}" ] && [ "${#hosts[@]}" -eq 0 ] && [ "$processes" = 1 ]; then
  # A task of srun. The first node is a for a,b, and n01 for n[01-04,7].
  first="$SLURM_STEP_NODELIST"
  if [[ "$first" =~ ^([^][,]*)\[([^],-]+) ]]; then
    first="${BASH_REMATCH[1]}${BASH_REMATCH[2]}"
  fi
  for name in SLURM_NTASKS SLURM_PROCID SLURM_JOB_ID; do
    [ -n "${!name:-}" ] || mistake "SLURM_STEP_NODELIST is set but $name is not: start it with srun"
  done
  if [ "$SLURM_NTASKS" -gt 1 ]; then
    export ONESUG_PROCESSES="$SLURM_NTASKS" ONESUG_PROCESS="$SLURM_PROCID"
    export ONESUG_COORDINATOR="${first%%,*}:${port:-$((20000 + SLURM_JOB_ID % 20000))}"
    # Several tasks on a node that see all of its GPUs use one each.
    if [ "$SLURM_NTASKS" -gt "${SLURM_STEP_NUM_NODES:-$SLURM_NTASKS}" ] && [ "$(gpus)" -gt 1 ]; then
      export JAX_LOCAL_DEVICE_IDS="${SLURM_LOCALID:-0}"
    fi
  fi
  python="${python:-$root/.venv/bin/python}"
  command=("$python" -m onesug_jax.main run "$@")
  if [ -n "$dry_run" ]; then
    show env "ONESUG_PROCESSES=${ONESUG_PROCESSES:-}" "ONESUG_PROCESS=${ONESUG_PROCESS:-}" \
      "ONESUG_COORDINATOR=${ONESUG_COORDINATOR:-}" "${command[@]}"
    exit 0
  fi
  exec "${command[@]}"
fi

prepare

if [ -n "${SLURM_JOB_ID:-}" ] && [ "${#hosts[@]}" -eq 0 ] && [ "$processes" = 1 ]; then
  # An allocation: srun starts this script as each task, and ends all tasks if one fails.
  command=(srun --kill-on-bad-exit=1 bash "$self" ${arguments[@]+"${arguments[@]}"})
  if [ -n "$dry_run" ]; then
    show "${command[@]}"
    exit 0
  fi
  exec "${command[@]}"
fi

# ------------------------------------------------------------------ all processes

port="${port:-$((20000 + RANDOM % 20000))}"
commands=() # the quoted command of each process
if [ "${#hosts[@]}" -gt 0 ]; then
  count="${#hosts[@]}"
  for index in "${!hosts[@]}"; do
    remote=(env "ONESUG_PROCESSES=$count" "ONESUG_PROCESS=$index"
      "ONESUG_COORDINATOR=${hosts[0]##*@}:$port")
    remote+=(bash "$self" --leashed "--grace_seconds=$grace_seconds" "--python=$python" -- "$@")
    printf -v text ' %q' "${remote[@]}"
    command=(ssh -o BatchMode=yes -o ServerAliveInterval=30 "${hosts[$index]}" "cd ${root@Q} &&$text")
    printf -v text ' %q' "${command[@]}"
    commands+=("$text")
  done
else
  count="$processes" each="$(gpus)"
  if [ "$count" -gt 1 ] && [ $((each % count)) -ne 0 ]; then
    mistake "--processes=$count does not divide this host's $each GPUs"
  fi
  for ((index = 0; index < count; index++)); do
    command=()
    if [ "$count" -gt 1 ]; then
      command=(env "ONESUG_PROCESSES=$count" "ONESUG_PROCESS=$index" "ONESUG_COORDINATOR=127.0.0.1:$port")
      if [ "$each" -gt 0 ]; then
        share=$((each / count))
        command+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, $((index * share)) $((index * share + share - 1)))")
      fi
    fi
    command+=("$python" -m onesug_jax.main run "$@")
    printf -v text ' %q' "${command[@]}"
    commands+=("$text")
  done
fi
if [ -n "$dry_run" ]; then
  for text in "${commands[@]}"; do
    eval "show$text"
  done
  exit 0
fi
if [ "$count" = 1 ] && [ "${#hosts[@]}" -eq 0 ]; then eval "exec$text"; fi

scratch="$(mktemp -d)"
mkfifo "$scratch/leash"
exec 4<>"$scratch/leash" # standard input of remote processes: empty, and closed when this script ends
pids=() labels=()
for index in "${!commands[@]}"; do
  mkfifo "$scratch/$index"
  sed -u "s/^/[$index] /" <"$scratch/$index" 4<&- & # labels each line with the process
  labels+=($!)
  eval "exec${commands[$index]}" <"$scratch/leash" >"$scratch/$index" 2>&1 4<&- &
  pids+=($!)
done

send() { # a signal to all running processes
  local pid
  for pid in "${pids[@]}"; do kill "-$1" "$pid" 2>/dev/null || true; done
}
running() {
  local pid
  for pid in "${pids[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then return 0; fi
  done
  return 1
}
signalled="" deadline=0
stop() {
  if [ -z "$signalled" ]; then deadline=$((SECONDS + grace_seconds)); fi
  signalled="${signalled:-$1}"
  # Remote processes end when their standard input does, so that ssh still shows their last output.
  if [ "${#hosts[@]}" -gt 0 ]; then exec 4>&-; else send TERM; fi
}
trap 'stop 143' TERM
trap 'stop 130' INT
trap 'rm -rf "$scratch"' EXIT

first="" ended=()
while :; do
  any_running=""
  for index in "${!pids[@]}"; do
    if [ -n "${ended[$index]:-}" ]; then continue; fi
    if kill -0 "${pids[$index]}" 2>/dev/null; then
      any_running=yes
      continue
    fi
    code=0
    wait "${pids[$index]}" || code=$?
    ended[index]=yes
    if [ "$code" -ne 0 ] && [ -z "$first$signalled" ]; then
      echo "[gpu] process $index ended with exit code $code; stopping the others" >&2
      first="$code"
      stop "$code"
    fi
  done
  if [ -z "$any_running" ]; then break; fi
  if [ -n "$signalled" ] && [ "$SECONDS" -ge "$deadline" ] && running; then
    echo "[gpu] processes have not ended $grace_seconds s after SIGTERM; killing them" >&2
    send KILL
    deadline=$((SECONDS + grace_seconds + 5))
  fi
  sleep 0.1 || true
done
for try in 1 2 3 4 5 6 7 8 9 10; do # wait for the last lines
  if ! kill -0 "${labels[@]}" 2>/dev/null; then break; fi
  if [ "$try" -lt 10 ]; then sleep 0.1; fi
done
exit "${first:-${signalled:-0}}"
