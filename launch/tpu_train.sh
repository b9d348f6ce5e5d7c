#!/usr/bin/env bash
# Trains on Cloud TPU: creates the slices, copies the code, starts all workers, shows the log, and
# restarts after preemption or maintenance from the last checkpoint. If this script is interrupted
# or loses its connection, the training continues, and the same command shows it again.
#
#   bash launch/tpu_train.sh [flags] -- [words for `python -m onesug_jax.main run`]
#   bash launch/tpu_train.sh --name=shop --type=v5litepod-16 --spot --work_dir=gs://my-bucket/shop \
#     -- --gin_file=gin_configs/tpu/v5e_16.gin --gin.LOG=gs://my-bucket/log.parquet
#   bash launch/tpu_train.sh --name=shop --zone=us-west4-a --delete
#
# Flags, --flag=VALUE or --flag VALUE, and the environment variables that set their defaults:
#   --name             TPU_NAME             onesug; the queued resource and its TPU, or the JobSet
#   --project          TPU_PROJECT          gcloud's default
#   --zone             TPU_ZONE             gcloud's default
#   --type             TPU_TYPE             v5litepod-8; v4-, v5litepod-, v5p- or v6e-N
#   --topology         TPU_TOPOLOGY         the type's; needed for sizes with several, such as v5p-768
#   --slices           TPU_SLICES           1; number of slices, joined by the network (replica axis)
#   --version          TPU_VERSION          the runtime version; by default the one for the type
#   --spot             TPU_SPOT=1           cheaper, but may be preempted at any time
#   --network          TPU_NETWORK          the project's default network
#   --subnetwork       TPU_SUBNETWORK
#   --internal_ips     TPU_INTERNAL_IPS=1   no external addresses; ssh then needs IAP or a VPN
#   --data_disk        TPU_DATA_DISK        source=DISK,mode=read-only: attached to every VM
#   --service_account  TPU_SERVICE_ACCOUNT  the VMs' account (also for the bucket)
#   --create_flags     TPU_CREATE_FLAGS     more words for `queued-resources create`: "--reserved"
#   --ssh_flags        TPU_SSH_FLAGS        more words for ssh and scp: "--tunnel-through-iap"
#   --work_dir         TPU_WORK_DIR         work/NAME on the VM, or gs://BUCKET/FOLDER
#   --force_local      TPU_FORCE_LOCAL=1    allow a work_dir on the VM with --spot or with more than
#                                           one worker (for a folder that all workers share)
#   --retries          TPU_RETRIES          20; most restarts
#   --poll_seconds     TPU_POLL_SECONDS     20; interval between checks
#   --wait_minutes     TPU_WAIT_MINUTES     1440; longest wait in the queue
#   --restart                               end the running training, if any, and start this one
#   --delete                                delete the TPU and its queued resource; nothing else
#   --delete_when_done TPU_DELETE_WHEN_DONE=1  delete them when the training has ended or failed
#   --dry_run                               print every command, run none
#   --gke              TPU_GKE=1            on a GKE cluster: by XPK if installed, else a JobSet
#   --cluster          TPU_CLUSTER          its name; kubectl's current one
#   --image            TPU_IMAGE            the image built from Dockerfile
#   --print_jobset                          print the JobSet's manifest, do nothing
#
# The training itself reads and writes gs:// paths, in --work_dir or after `--` (docs/scale.md).
# Exit code: that of the training; 2: an error in the flags.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
usage() { sed -n '2,/^set -euo/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }
mistake() { echo "error: $1" >&2 && exit 2; }
fail() { echo "error: $1" >&2 && exit 1; }
say() { if [ -n "$dry_run" ]; then echo "# $*" >&3; else echo "[tpu] $*" >&3; fi; }
exec 3>&1

# ------------------------------------------------------------------ flags

name="${TPU_NAME:-onesug}" project="${TPU_PROJECT:-}" zone="${TPU_ZONE:-}"
type="${TPU_TYPE:-v5litepod-8}" version="${TPU_VERSION:-}" spot="${TPU_SPOT:-}"
network="${TPU_NETWORK:-}" subnetwork="${TPU_SUBNETWORK:-}"
service_account="${TPU_SERVICE_ACCOUNT:-}" work_dir="${TPU_WORK_DIR:-}"
slices="${TPU_SLICES:-1}" topology="${TPU_TOPOLOGY:-}" data_disk="${TPU_DATA_DISK:-}"
internal_ips="${TPU_INTERNAL_IPS:-}" gke="${TPU_GKE:-}" cluster="${TPU_CLUSTER:-}"
image="${TPU_IMAGE:-}" print_jobset=""
force_local="${TPU_FORCE_LOCAL:-}" retries="${TPU_RETRIES:-20}"
poll_seconds="${TPU_POLL_SECONDS:-20}" wait_minutes="${TPU_WAIT_MINUTES:-1440}"
delete_when_done="${TPU_DELETE_WHEN_DONE:-}" restart="" delete="" dry_run="" words=()
create_flags="${TPU_CREATE_FLAGS:-}" ssh_flags="${TPU_SSH_FLAGS:-}"

while [ $# -gt 0 ]; do
  flag="${1%%=*}"
  case "$flag" in
    --name | --project | --zone | --type | --topology | --slices | --version | --network | \
      --subnetwork | --data_disk | --cluster | --image | --service_account | --create_flags | --ssh_flags | --work_dir | --retries | \
      --poll_seconds | --wait_minutes)
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
    --spot | --force_local | --internal_ips | --gke | --print_jobset | --restart | --delete | --delete_when_done | --dry_run)
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
for word in "$@"; do
  case "$word" in
    --gin.WORK_DIR=*) work_dir="${word#*=}" ;;
    --dry_run) mistake "write --dry_run before \`--\`; for the training's own, run it on this machine" ;;
    *) words+=("$word") ;;
  esac
done

[[ "$name" =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
  mistake "--name=$name: expected lower-case letters, digits and dashes, a letter first"
[[ "$slices" =~ ^[1-9][0-9]*$ ]] || mistake "--slices=$slices: expected a number from 1 on"
[[ "$retries" =~ ^[0-9]+$ ]] || mistake "--retries=$retries: expected a whole number"
[[ "$wait_minutes" =~ ^[0-9]+$ ]] || mistake "--wait_minutes=$wait_minutes: expected a whole number"
[[ "$poll_seconds" =~ ^[0-9]*\.?[0-9]+$ && "$poll_seconds" =~ [1-9] ]] ||
  mistake "--poll_seconds=$poll_seconds: expected a number greater than 0"
command -v python3 >/dev/null || fail "no python3 on PATH; launch/tpu_slices.py needs it"
described="$(python3 "$root/launch/tpu_slices.py" "$type" "$topology")" || exit 2
read -r _ machines runtime _ <<<"$described"
if [ -n "$print_jobset" ]; then gke=1; fi
if [ "$runtime" = - ] && [ -z "$gke$version" ]; then
  mistake "--type=$type: only GKE has these chips; give --gke (or --version, if Cloud TPU has them now)"
fi
version="${version:-$runtime}"
machines=$((machines * slices))
work_dir="${work_dir:-work/$name}"
if [ -n "$spot" ] && [[ "$work_dir" != gs://* ]] && [ -z "$force_local$delete" ]; then
  mistake "--spot with --work_dir=$work_dir: a preempted VM loses its disk, and with it the
checkpoints. Give --work_dir=gs://BUCKET/FOLDER, or --force_local to take the risk."
fi
alone="they need a shared folder. Give
--work_dir=gs://BUCKET/FOLDER, or --force_local if this folder is shared."
if [ "$machines" -gt 1 ] && [[ "$work_dir" != gs://* ]] && [ -z "$force_local$delete" ]; then
  mistake "--work_dir=$work_dir with the $machines machines of --type=$type: $alone"
fi
words=("--gin.WORK_DIR=$work_dir" ${words[@]+"${words[@]}"})
if [ -n "$gke" ]; then
  if [[ "$work_dir" != gs://* ]] && [ -z "$force_local$delete" ]; then
    mistake "--work_dir=$work_dir with --gke: a pod's disk ends with the pod. Give --work_dir=gs://BUCKET/FOLDER,
or --force_local for a folder in one of the image's volumes."
  fi
  flags=("--name=$name" "--type=$type" "--topology=$topology" "--slices=$slices")
  flags+=("--project=$project" "--zone=$zone" "--cluster=$cluster" "--image=$image")
  flags+=("--service_account=$service_account" "--retries=$retries" "--poll_seconds=$poll_seconds")
  for flag in spot dry_run print_jobset delete delete_when_done; do
    if [ -n "${!flag}" ]; then flags+=("--$flag"); fi
  done
  exec python3 "$root/launch/tpu_gke.py" "${flags[@]}" -- "${words[@]}"
fi
id="$(printf '%s\n' "${words[@]}" | cksum | cut -d' ' -f1)" # identifies the training

if [ -z "$dry_run" ] && ! command -v gcloud >/dev/null; then
  fail "no gcloud on PATH. Install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install),
then \`gcloud auth login\` and \`gcloud config set project PROJECT\`."
fi

# With a passphrase on the key, ssh would wait for input on every worker, unseen.
check_key() {
  local key="${HOME:-}/.ssh/google_compute_engine"
  if [[ "$ssh_flags" =~ --ssh-key-file=([^ ]+) ]]; then key="${BASH_REMATCH[1]}"; fi
  if [ ! -f "$key" ] || ! command -v ssh-keygen >/dev/null; then return; fi # gcloud makes one
  if ssh-keygen -y -P "" -f "$key" >/dev/null 2>&1; then return; fi
  local print
  print="$(ssh-keygen -lf "$key" 2>/dev/null | cut -d' ' -f2)" || true
  if [ -n "$print" ] && ssh-add -l 2>/dev/null | grep -qF "$print"; then return; fi
  fail "the ssh key $key has a passphrase, and no agent has it, so ssh would wait forever. Type
  eval \"\$(ssh-agent)\" && ssh-add $key
and repeat the command; or give --ssh_flags=--ssh-key-file=KEY with a key without a passphrase."
}
if [ -z "$dry_run$delete" ]; then check_key; fi

# ------------------------------------------------------------------ gcloud

nodes=("$name") named=("--node-id=$name")
if [ "$slices" -gt 1 ]; then
  nodes=() named=("--node-count=$slices" "--node-prefix=$name")
  for ((number = 0; number < slices; number++)); do nodes+=("$name-$number"); done
fi
where=(${zone:+"--zone=$zone"} ${project:+"--project=$project"} --quiet)
read -ra more_create <<<"$create_flags"
read -ra more_ssh <<<"$ssh_flags"
batch="-o BatchMode=yes" # an unseen prompt fails instead of waiting
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
trap 'echo; say "interrupted; a running training continues. The same command shows it again; --delete ends it"; exit 130' INT
worker="onesug/code/launch/tpu_worker.sh"
planned=ABSENT planned_status="absent -" # the states that --dry_run assumes

show() { # prints a command, quoted
  local word text=""
  for word in "$@"; do
    if [[ "$word" =~ ^[A-Za-z0-9_./:=@,+-]+$ ]]; then text+=" $word"; else text+=" ${word@Q}"; fi
  done
  echo "${text# }" >&3
}

cloud() { # runs gcloud; --dry_run prints the command
  if [ -n "$dry_run" ]; then show gcloud "$@"; else gcloud "$@" </dev/null; fi
}

resource() { cloud compute tpus queued-resources "$1" "$name" "${@:2}" "${where[@]}"; }
vm() { cloud compute tpus tpu-vm "$1" "${@:2}" "${where[@]}"; }

state() { # of the queued resource: ACTIVE, .., ABSENT; ERROR: gcloud failed
  local found
  if found="$(resource describe --format='value(state.state)' 2>"$scratch/state_error")"; then
    if [ -n "$dry_run" ]; then found="$planned"; fi
    echo "${found:-ERROR}"
  elif grep -qi 'NOT_FOUND\|not found' "$scratch/state_error"; then
    echo ABSENT
  else
    echo ERROR
  fi
}

lost() { # whether the TPU or one of its slices was preempted
  local found node
  case "$(state)" in
    SUSPENDING | SUSPENDED | FAILED | DELETING | ABSENT) return 0 ;;
    ACTIVE)
      for node in "${nodes[@]}"; do
        found="$(vm describe "$node" --format='value(state)' 2>/dev/null)" || continue
        if [[ "$found" = PREEMPTED || "$found" = TERMINATED ]]; then return 0; fi
      done
      return 1
      ;;
    *) return 1 ;;
  esac
}

create() {
  say "requesting $slices slice(s) $type${spot:+ (spot)} as $name, runtime $version"
  resource create "${named[@]}" "--accelerator-type=$type" "--runtime-version=$version" \
    ${spot:+--spot} ${network:+"--network=$network"} ${subnetwork:+"--subnetwork=$subnetwork"} \
    ${internal_ips:+--internal-ips} ${data_disk:+"--data-disk=$data_disk"} \
    ${service_account:+"--service-account=$service_account"} \
    ${more_create[@]+"${more_create[@]}"} || fail "gcloud refused the request (see above)"
  planned=ACTIVE
}

remove() {
  local try
  say "deleting $name"
  for try in 1 2 3 4 5; do
    if resource delete --force 2>"$scratch/error"; then return; fi
    if [ "$(state)" = ABSENT ]; then return; fi
    if [ "$try" -lt 5 ]; then sleep "$poll_seconds"; fi
  done
  cat "$scratch/error" >&2
  fail "$name could not be deleted and may still cost money; the same command with --delete tries again"
}

# Returns when the TPU is active: creates it, waits for it, deletes a failed or preempted one.
ensure_active() {
  local found before="" asked="" deadline=$((SECONDS + wait_minutes * 60))
  while :; do
    found="$(state)"
    case "$found" in
      ACTIVE)
        if [ -n "$dry_run" ] || ! lost; then break; fi
        remove
        continue
        ;;
      ABSENT)
        create
        asked=yes reached=yes before=""
        continue
        ;;
      FAILED)
        if [ -n "$asked" ]; then
          resource describe >&2 || true
          fail "the request for $type failed (see above); --delete removes it"
        fi
        remove
        continue
        ;;
      SUSPENDED)
        remove
        continue
        ;;
      ERROR)
        errors=$((errors + 1))
        if [ -z "$reached" ] || [ "$errors" -ge 10 ]; then
          cat "$scratch/state_error" >&2
          fail "gcloud could not read the state of $name (see above)"
        fi
        ;;
    esac
    if [ "$found" != ERROR ]; then reached=yes errors=0; fi
    if [ "$found" != "$before" ]; then say "$name is $found"; fi
    before="$found"
    if [ "$SECONDS" -ge "$deadline" ]; then
      fail "$name is still $found after --wait_minutes=$wait_minutes. It keeps its place in the queue: the same command continues to wait; --delete gives up."
    fi
    sleep "$poll_seconds"
  done
  say "$name is ACTIVE"
}

# ------------------------------------------------------------------ the workers

count_workers() {
  local found node
  workers=0
  for node in "${nodes[@]}"; do
    found="$(vm describe "$node" --format='value(networkEndpoints[].ipAddress)')" || return 1
    if [ -n "$dry_run" ]; then found=one; fi
    [ -n "$found" ] || return 1
    found="${found//[^;]/}" # gcloud writes a;b;c
    workers=$((workers + ${#found} + 1))
  done
}

ssh_to() { # NODE WORKER COMMAND
  vm ssh "$1" "--worker=$2" "--ssh-flag=$batch" ${more_ssh[@]+"${more_ssh[@]}"} "--command=$3"
}

ask_all() { # one command on all workers of all slices
  local node code=0
  for node in "${nodes[@]}"; do ssh_to "$node" all "$1" || code=$?; done
  return "$code"
}

ship() {
  local node
  for node in "${nodes[@]}"; do
    vm scp "$scratch/code.tar.gz" "$node:onesug.tar.gz" --worker=all "--scp-flag=$batch" \
      ${more_ssh[@]+"${more_ssh[@]}"} || return 1
  done
}

# Runs COMMAND on all workers until each prints WORD; a new VM refuses the first connections.
# Returns 1 if the TPU was lost.
everywhere() {
  local word="$1" command="$2" try said
  for try in 1 2 3; do
    said="$(ask_all "$command" 2>"$scratch/error" || true)"
    if [ -n "$dry_run" ]; then return 0; fi
    if [ "$(grep -c "onesug-worker [^ ]* $word" <<<"$said")" -ge "$workers" ]; then return 0; fi
    if lost; then return 1; fi
    if [ "$try" -lt 3 ]; then
      say "not all of $workers worker(s) have $word; trying again"
      sleep "$poll_seconds"
    fi
  done
  tail -n 30 "$scratch/error" >&2
  fail "not all of $workers worker(s) have $word (see above). $name remains; the same command tries again; --delete removes it."
}

look() { # sets `found`, a line STATE ID for each worker; returns 1 if a worker did not reply
  local said command
  command="if [ -f $worker ]; then bash $worker status; else echo onesug-worker - absent -; fi"
  said="$(ask_all "$command" 2>"$scratch/error" || true)"
  if [ -n "$dry_run" ]; then
    found="$planned_status"
    return 0
  fi
  found="$(grep -o 'onesug-worker [^ ]* [^ ]* [^ ]*' <<<"$said" | cut -d' ' -f3-)" || found=""
  [ "$(grep -c . <<<"$found")" -ge "$workers" ]
}

pack() { # packs the committed code into code.tar.gz
  local archive="$scratch/code.tar.gz"
  if git -C "$root" rev-parse --verify -q HEAD >/dev/null; then
    if [ -n "$(git -C "$root" status --porcelain)" ]; then
      say "note: uncommitted changes are not copied"
    fi
    if [ -n "$dry_run" ]; then
      show git -C "$root" archive --format=tar.gz -o "$archive" HEAD
    else
      git -C "$root" archive --format=tar.gz -o "$archive" HEAD
    fi
  elif [ -n "$dry_run" ]; then
    show tar -czf "$archive" -C "$root" .
  else
    tar -czf "$archive" -C "$root" --exclude=./.venv --exclude=./work .
  fi
}

# Copies the code, installs its packages and starts the training on all workers; 1 if the TPU was lost.
start() {
  local command try
  pack || fail "the code could not be packed"
  say "copying the code to $workers worker(s)"
  for try in 1 2 3 4 5 6; do # a new VM refuses the first connections
    if ship 2>"$scratch/error"; then break; fi
    if lost; then return 1; fi
    if [ "$try" = 6 ]; then
      cat "$scratch/error" >&2
      fail "the code could not be copied (see above). $name remains; the same command tries again; --delete removes it."
    fi
    sleep "$poll_seconds"
  done
  command="rm -rf onesug/code && mkdir -p onesug/code && tar -xzf onesug.tar.gz -C onesug/code"
  command="$command && bash $worker install"
  say "installing (some minutes the first time)"
  everywhere installed "$command" || return 1
  # Stop first: an earlier attempt may have started some of the workers.
  printf -v command ' %q' "$id" "$workers" "${words[@]}"
  command="bash $worker stop >/dev/null; bash $worker start$command"
  everywhere started "$command" || return 1
  say "training has begun"
}

stop_all() { ask_all "bash $worker stop" >/dev/null 2>&1 || true; }

# Shows the first worker's log until all workers have ended. Sets `outcome`: well, failed (and
# `code`), stopped (one saved and ended by a signal, exit code 143: preemption or maintenance), died
# (a VM was rebooted), lost (the TPU was preempted).
follow() {
  local silent=0 try seen states stopped
  : >"$scratch/log"
  while :; do
    seen=$(($(wc -c <"$scratch/log") + 1))
    ssh_to "${nodes[0]}" 0 "bash $worker log $seen $poll_seconds" 2>/dev/null | tee -a "$scratch/log" || true
    if [ -n "$dry_run" ]; then planned_status="exit=0 $id"; fi
    if ! look; then
      if lost; then
        outcome=lost
        return
      fi
      silent=$((silent + 1))
      if [ "$silent" -ge 30 ]; then
        tail -n 10 "$scratch/error" >&2
        fail "workers of $name do not answer. A running training continues; the same command tries again."
      fi
      sleep "$poll_seconds"
      continue
    fi
    silent=0
    states="$(cut -d' ' -f1 <<<"$found" | sort -u)"
    stopped="$(grep -x exit=143 <<<"$states" || true)"
    code="$(sed -n 's/^exit=0*\([1-9][0-9]*\)$/\1/p' <<<"$states" | head -n 1)"
    if [ -n "$code" ] || grep -q 'died\|absent' <<<"$states"; then
      # After a preemption, training often ends before gcloud reports it.
      for try in 1 2 3 4 5 6; do
        if lost; then
          outcome=lost
          return
        fi
        if [ -z "$spot$stopped" ]; then break; fi
        if [ "$try" -lt 6 ]; then sleep "$poll_seconds"; fi
      done
      if [ -n "$stopped" ]; then outcome=stopped; elif [ -n "$code" ]; then outcome=failed; else outcome=died; fi
      return
    fi
    if [ "$states" = "exit=0" ]; then
      outcome=well
      return
    fi
  done
}

show_failed() {
  say "the workers that failed:"
  ask_all "bash $worker failed 50" 2>/dev/null || true
}

# ------------------------------------------------------------------ main

if [ -n "$delete" ]; then
  if [ "$(state)" = ABSENT ] && [ -z "$dry_run" ]; then
    say "there is no $name"
  else
    remove
  fi
  exit 0
fi

starts=0 errors=0 reached="" outcome="" code="" found="" workers=1
while :; do
  ensure_active
  count_workers || fail "gcloud could not read the number of workers of $name"
  if [ "$workers" -gt 1 ] && [[ "$work_dir" != gs://* ]] && [ -z "$force_local" ]; then
    mistake "--work_dir=$work_dir with the $workers machines of $name: $alone --delete removes the TPU."
  fi
  outcome=""
  for _ in 1 2 3 4 5 6; do
    if look; then break; fi
    sleep "$poll_seconds"
  done
  if grep -q '^running' <<<"$found" && [ -z "$restart" ]; then
    if grep '^running' <<<"$found" | grep -qv " $id\$"; then
      fail "another training is running on $name. Give the same words to see it, --restart to end it, or another --name."
    fi
    say "training is running; its log follows; --restart starts it again with the current code"
    outcome=attached
  fi
  if [ -z "$outcome" ]; then
    if grep -q '^running' <<<"$found"; then stop_all; fi
    start || outcome=lost
  fi
  restart=""
  if [ "$outcome" != lost ]; then follow; fi
  case "$outcome" in
    well)
      code=0
      say "training has ended"
      break
      ;;
    failed)
      show_failed
      stop_all
      say "training has failed with exit code $code"
      break
      ;;
  esac
  if [ "$starts" -ge "$retries" ]; then
    fail "$name was lost again after --retries=$retries restarts. The same command continues from the last checkpoint."
  fi
  starts=$((starts + 1))
  case "$outcome" in
    lost) say "$name was preempted; restart $starts of $retries" ;;
    stopped) say "training was stopped on a worker (maintenance?); restart $starts of $retries" ;;
    died) say "training disappeared on a worker (rebooted?); restart $starts of $retries" ;;
  esac
  if [ "$outcome" != lost ]; then stop_all; fi
done
if [ -n "$delete_when_done" ]; then
  remove
else
  say "$name still exists and costs money; --delete removes it"
fi
exit "$code"
