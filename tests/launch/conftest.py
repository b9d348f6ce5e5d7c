"""A fake Google Cloud: a `gcloud` on PATH, whose VMs are folders and whose ssh is bash."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

# A shell starts background jobs, and so these tests, with SIGINT ignored.
INTERRUPTIBLE = (
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execvp(sys.argv[1], sys.argv[1:])",
)
HARD = ['--gin.LOG=/data/it\'s a $HOME "log".parquet', '--gin.examples.tasks={"query": 1.0}', "*"]

# Stores the queued resources in state.json, writes every call to calls.jsonl, and reads plan.json:
#   workers: of each slice; before: states before ACTIVE; preempt: reads of the log until the first
#   TPU is preempted; how: suspended; node (visible on the VM only); warned (SIGTERM, later the
#   state); maintenance (SIGTERM, the TPU stays); refuse: connections that a new TPU refuses;
#   silent: scp never works
GCLOUD = r"""#!PYTHON
import json, os, pathlib, shutil, signal, subprocess, sys

home = pathlib.Path(__file__).resolve().parent.parent
words = sys.argv[1:]
with open(home / "calls.jsonl", "a") as file:
    print(json.dumps(words), file=file)
plan = json.loads((home / "plan.json").read_text())
path = home / "state.json"
state = json.loads(path.read_text()) if path.exists() else {"made": 0}


def leave(code=0, text="", error=""):
    part = path.with_suffix(f".{os.getpid()}")  # another call may be reading the file
    part.write_text(json.dumps(state))
    part.replace(path)
    if text:
        print(text)
    if error:
        print(error, file=sys.stderr)
    sys.exit(code)


def flag(name):
    found = [word.split("=", 1)[1] for word in words if word.startswith(f"--{name}=")]
    return found[0] if found else None


def vms(node=None):
    # of all slices, or of the named one
    count = state["slices"]
    chosen = range(count) if node is None else [int(node.rsplit("-")[-1]) if count > 1 else 0]
    each = plan["workers"]
    numbers = [slice * each + worker for slice in chosen for worker in range(each)]
    return [home / "vms" / f"{state['made']}-{number}" for number in numbers]


def take_away(how):
    warned = ["ACTIVE"] * 3 if how in ("warned", "maintenance") else []
    if how != "maintenance":
        state["is"] = ["ACTIVE"] if how == "node" else [*warned, "SUSPENDING", "SUSPENDED"]
        state["node"] = "PREEMPTED" if how == "node" else "READY"
    for vm in vms():
        pid = vm / "onesug" / "run" / "pid"
        if pid.exists():
            try:
                os.killpg(int(pid.read_text()), signal.SIGTERM if warned else signal.SIGKILL)
            except ProcessLookupError:
                pass


if plan.get("broken"):
    leave(1, error="ERROR: (gcloud) PERMISSION_DENIED: no such project")
if words[0] == "container":
    leave()
kind, action = words[2], words[3]
if kind == "queued-resources":
    if action == "create":
        if "is" in state:
            leave(1, error="ERROR: ALREADY_EXISTS")
        state["made"] += 1
        state["slices"] = int(flag("node-count") or 1)
        state["looks"] = state["connections"] = 0
        state["node"] = "READY"
        state["is"] = [*plan["before"], "ACTIVE"]
        for vm in vms():
            vm.mkdir(parents=True)
    elif "is" not in state:
        leave(1, error="ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource was not found")
    elif action == "describe":
        now = state["is"][0]
        if len(state["is"]) > 1:
            state["is"].pop(0)
        leave(0, now)
    elif action == "delete":
        take_away("suspended")
        del state["is"]
    leave()
if kind != "tpu-vm":
    leave(2, error=f"no such command: {words}")
if action == "describe":
    endpoints = ";".join(f"10.0.0.{index}" for index in range(plan["workers"]))
    leave(0, state["node"] if flag("format") == "value(state)" else endpoints)
if state.get("is", ["ABSENT"])[0] != "ACTIVE" or state["node"] != "READY":
    leave(255, error="ssh: no route to host")
state["connections"] += 1
if state["connections"] <= plan["refuse"]:
    leave(255, error="ssh: connection refused")
node = words[5 if action == "scp" else 4].split(":")[0]
chosen = vms(node) if flag("worker") == "all" else [vms(node)[int(flag("worker"))]]
if action == "scp" and plan.get("silent"):
    leave(255, error="scp: the disk of a worker is full")
if action == "scp":
    for vm in chosen:
        shutil.copy(words[4], vm / words[5].split(":")[1])
    leave()
command = flag("command")
if " log " in command:
    state["looks"] += 1
    if state["made"] == 1 and state["looks"] == plan["preempt"]:
        take_away(plan["how"])
        leave(255, error="ssh: connection closed")
code = 0
for vm in chosen:
    environment = {
        "HOME": str(vm), "HOSTNAME": f"t1v-w-{vm.name.split('-')[1]}", "CLOUD": str(home),
        "PATH": f"{home / 'vm_bin'}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1",
    }
    code = subprocess.run(["bash", "-c", command], cwd=vm, env=environment).returncode or code
leave(code)
"""

# The python3 of the VMs, whose uv makes environments with TRAINING as python.
PYTHON3 = r"""#!/bin/bash
echo "$*" >>"$HOME/installed"
case "$*" in
  *" uv venv "*) mkdir -p "${@: -1}/bin" && cp "$CLOUD/vm_bin/training" "${@: -1}/bin/python" ;;
esac
"""
# The training: writes its words to a file and waits for its start number `starts`, or for SIGTERM.
# It ends with `code` on one worker and with 0 elsewhere.
TRAINING = r"""#!/bin/bash
echo "${ONESUG_PROCESSES:-alone}" >"$HOME/processes"
echo "$ONESUG_MIRROR" >"$HOME/mirror"
for word in "$@"; do case "$word" in --gin.WORK_DIR=*) work="${word#*=}" ;; esac; done
work="${work/gs:\/\//$CLOUD/buckets/}"
mkdir -p "$work"
echo "$HOSTNAME" >>"$work/starts"
started="$(grep -c "$HOSTNAME" "$work/starts")"
read -r starts code failing <"$CLOUD/training"
echo "training, start $started"
trap 'echo saved; exit 143' TERM
printf '%s\n' "$@" >"$HOME/words"  # last: a test that waits for them may now end it
while [ "$started" -lt "$starts" ]; do sleep 0.05; done
echo "trained"
if [ "$HOSTNAME" = "t1v-w-$failing" ]; then seq 100 && exit "$code"; fi
"""


def executable(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Cloud:
    """The fake cloud and a checkout, in one folder."""

    def __init__(self, home: pathlib.Path, project_root: pathlib.Path):
        self.home, self.repository = home, home / "repository"
        executable(home / "bin" / "gcloud", GCLOUD.replace("#!PYTHON", f"#!{sys.executable} -S"))
        executable(home / "vm_bin" / "python3", PYTHON3)
        executable(home / "vm_bin" / "training", TRAINING)
        self.plan()
        scripts = ("tpu_train.sh", "tpu_worker.sh", "tpu_slices.py", "tpu_gke.py")
        for name in (*(f"launch/{script}" for script in scripts), "requirements.lock.txt"):
            (self.repository / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(project_root / name, self.repository / name)
        shutil.copy(project_root / "pyproject.toml", self.repository)
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(self.repository)]
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "code"]):
            subprocess.run([*git, *command], check=True)

    def plan(self, *, starts=1, code=0, failing=0, **changes):
        """Sets the behaviour of the cloud and the training."""
        plan = {"workers": 1, "before": [], "preempt": 0, "how": "suspended", "refuse": 0}
        plan = {**plan, "broken": False, **changes}
        (self.home / "plan.json").write_text(json.dumps(plan))
        (self.home / "training").write_text(f"{starts} {code} {failing}\n")

    def write(self, name, text):
        """Adds a program to PATH."""
        executable(self.home / "bin" / name, text)

    def command(self, *words):
        return ["bash", str(self.repository / "launch" / "tpu_train.sh"), *words]

    def environment(self, **more):
        variables = {name: value for name, value in os.environ.items() if name[:4] != "TPU_"}
        path = f"{self.home / 'bin'}:{os.environ['PATH']}"
        fixed = {"PATH": path, "HOME": str(self.home), "TPU_POLL_SECONDS": "0.1"}
        return {**variables, **fixed, **more}

    def train(self, *words, timeout=300, **more):
        """Runs the script until it ends."""
        return subprocess.run(
            self.command(*words),
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def calls(self, *start):
        """The calls of gcloud that begin with `start` (after `compute tpus`)."""
        path = self.home / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        calls = [json.loads(line)[2:] for line in lines]
        return [words for words in calls if words[: len(start)] == list(start)]

    def has_tpu(self):
        """Whether a TPU exists."""
        return "is" in json.loads((self.home / "state.json").read_text())

    def vm(self, made=1, worker=0):
        """A VM's home folder."""
        return self.home / "vms" / f"{made}-{worker}"

    def wait_for(self, path, seconds=20):
        """Waits until a file exists."""
        end = time.monotonic() + seconds
        while not path.exists():
            assert time.monotonic() < end, f"no {path}"
            time.sleep(0.05)

    def close(self):
        """Ends the running trainings."""
        for pid in self.home.glob("vms/*/onesug/run/pid"):
            try:
                os.killpg(int(pid.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                pass


@pytest.fixture
def cloud(tmp_path, project_root):
    made = Cloud(tmp_path, project_root)
    yield made
    made.close()
