#!/usr/bin/env bash
# The part of tpu_train.sh that runs on a TPU VM, or in a container of Dockerfile.
#   install                          makes an environment, once for each lock file
#   start ID WORKERS [WORD ...]      starts the training, which outlives the connection
#   status                           one line: onesug-worker HOST absent|running|died|exit=CODE ID
#   log FROM SECONDS                 prints the log from byte FROM (from 1), and follows it
#   stop                             makes the training save and end, and waits for it
#   failed LINES                     if it failed: worker number, host, exit code, the log's end
#   container PROCESSES [WORD ...]   runs the training as the container's process
# Beside the code (~/onesug/code) are venv/, run/ (log, pid, id, exit) and mirror/, the local copy
# of a work directory in a bucket.
set -euo pipefail

code="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
home="$(dirname "$code")"
run="$home/run"

say() { echo "onesug-worker ${HOSTNAME:-?} $*"; }
alive() { [ -f "$run/pid" ] && grep -qs tpu_worker.sh "/proc/$(cat "$run/pid")/cmdline"; }

install() {
  local want
  want="$(cat "$code/requirements.lock.txt" "$code/pyproject.toml" | cksum)"
  if [ "$(cat "$home/venv/.installed" 2>/dev/null)" != "$want" ]; then
    # The images have an older Python, so uv installs one.
    if ! python3 -m uv --version >/dev/null 2>&1; then
      python3 -m pip install --quiet --user uv ||
        python3 -m pip install --quiet --user --break-system-packages uv
    fi
    python3 -m uv venv --quiet --clear --python 3.12 "$home/venv"
    local pip=(python3 -m uv pip install --quiet --python "$home/venv/bin/python")
    "${pip[@]}" -r "$code/requirements.lock.txt"
    "${pip[@]}" -c "$code/requirements.lock.txt" -e "${code}[tpu]"
    echo "$want" >"$home/venv/.installed"
  fi
  say installed -
}

settings() {
  export PYTHONPATH="$code" PYTHONUNBUFFERED=1 ONESUG_MIRROR="${ONESUG_MIRROR:-$home/mirror}"
}

start() {
  local id="$1" workers="$2"
  shift 2
  if alive; then
    echo "error: a training is already running here (process $(cat "$run/pid"))" >&2
    exit 1
  fi
  mkdir -p "$run"
  rm -f "$run/exit"
  : >"$run/log"
  echo "$id" >"$run/id"
  cd "$home"
  settings
  if [ "$workers" -gt 1 ]; then export ONESUG_PROCESSES=auto; fi
  nohup setsid bash "$code/launch/tpu_worker.sh" train "$@" >"$run/log" 2>&1 </dev/null &
  echo $! >"$run/pid"
  say started "$id"
}

train() {
  local status=0
  trap : TERM # the training handles the signal; this shell then writes its exit code
  "$home/venv/bin/python" -m onesug_jax.main run "$@" || status=$?
  echo "$status" >"$run/exit.new"
  mv "$run/exit.new" "$run/exit"
}

status() {
  local id
  id="$(cat "$run/id" 2>/dev/null || echo -)"
  if [ -f "$run/exit" ]; then
    say "exit=$(cat "$run/exit")" "$id"
  elif alive; then
    say running "$id"
  elif [ -f "$run/exit" ]; then # it ended between the two checks
    say "exit=$(cat "$run/exit")" "$id"
  elif [ -f "$run/pid" ]; then
    say died "$id"
  else
    say absent -
  fi
}

log() {
  if [ ! -f "$run/log" ]; then return; fi
  timeout "$2" tail -s 0.2 --pid="$(cat "$run/pid")" -c "+$1" -f "$run/log" || true
}

failed() {
  local host="${HOSTNAME:-?}" exit
  exit="$(cat "$run/exit" 2>/dev/null || echo 0)"
  case "$exit" in 0 | 143) return ;; esac # Cloud TPU names its hosts ...-w-NUMBER
  echo "--- worker ${host##*-w-} on host $host, exit code $exit, last $1 lines:"
  tail -n "$1" "$run/log"
}

container() {
  if [ "$1" -gt 1 ]; then export ONESUG_PROCESSES=auto; fi
  shift
  cd "$home"
  settings
  exec "$home/venv/bin/python" -m onesug_jax.main run "$@"
}

stop() {
  if alive; then
    local pid waited=0
    pid="$(cat "$run/pid")"
    kill -TERM -- "-$pid" 2>/dev/null || true
    while alive && [ "$waited" -lt 120 ]; do
      sleep 0.5
      waited=$((waited + 1))
    done
    kill -KILL -- "-$pid" 2>/dev/null || true
  fi
  say stopped -
}

action="${1:-}"
case "$action" in
  install | start | train | status | log | stop | failed | container) shift && "$action" "$@" ;;
  *) sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
esac
