"""Processes on one host, several hosts or SLURM: their variables, and stopping them together."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.conftest import HARD, INTERRUPTIBLE

NAMES = ("ONESUG_PROCESSES", "ONESUG_PROCESS", "ONESUG_COORDINATOR", "JAX_LOCAL_DEVICE_IDS")

# In place of python: writes its arguments and variables to a file, then acts by its file `acts/N`:
# `end CODE`, `wait` (for SIGTERM) or `deaf` (ignores SIGTERM).
TRAINING = r"""#!PYTHON -S
import json, os, pathlib, signal, sys, time
home = pathlib.Path(__file__).resolve().parent
index = os.environ.get("ONESUG_PROCESS") or "0"
variables = {name: os.environ[name] for name in NAMES if name in os.environ}
(home / f"started{index}").write_text(json.dumps([sys.argv[1:], variables, os.getpid()]))
act, *code = (home / "acts" / index).read_text().split()
print("hello", flush=True)
if act == "end":
    time.sleep(0.3)
    sys.exit(int(code[0]))
def end(*_):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, end if act == "wait" else signal.SIG_IGN)
time.sleep(60)
"""
# In place of ssh: runs the command on this host; a kill ends the connection, not the command.
SSH = r"""#!/bin/bash
echo "${@: -2:1}" >>"$SSH_HOSTS"
exec bash -c "${@: -1}"
"""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Gpu:
    """The script with a fake training."""

    def __init__(self, home, project_root):
        self.home, self.script = home, str(project_root / "launch" / "gpu_train.sh")
        text = TRAINING.replace("PYTHON", sys.executable).replace("NAMES", repr(NAMES))
        self.python = executable(home / "python", text)
        executable(home / "bin" / "ssh", SSH)
        (home / "acts").mkdir()

    def acts(self, *acts):
        for index, act in enumerate(acts):
            (self.home / "acts" / str(index)).write_text(act)

    def environment(self, **more):
        variables = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ONESUG_", "SLURM_", "GPU_", "CUDA_", "JAX_"))
        }
        path = f"{self.home / 'bin'}:{os.environ['PATH']}"
        hosts = str(self.home / "hosts")
        fixed = {"PATH": path, "SSH_HOSTS": hosts, "ONESUG_PYTHON": str(self.python)}
        return {**variables, **fixed, **more}

    def start(self, *words, **more):
        return subprocess.Popen(
            [*INTERRUPTIBLE, "bash", self.script, *words],
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def train(self, *words, **more):
        process = self.start(*words, **more)
        out, err = process.communicate(timeout=40)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def started(self, index=0, seconds=15):
        """(words, variables, process id) of one process, once it has begun."""
        path, end = self.home / f"started{index}", time.monotonic() + seconds
        while not (path.exists() and path.stat().st_size):
            assert time.monotonic() < end, f"process {index} never began"
            time.sleep(0.05)
        return json.loads(path.read_text())

    def gone(self, index, seconds=10):
        """Whether a process ends within `seconds`."""
        pid, end = self.started(index)[2], time.monotonic() + seconds
        while os.path.exists(f"/proc/{pid}/cmdline"):
            if b"python" not in open(f"/proc/{pid}/cmdline", "rb").read():  # ended, not yet reaped
                return True
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True


@pytest.fixture
def gpu(tmp_path, project_root):
    made = Gpu(tmp_path, project_root)
    yield made
    for path in tmp_path.glob("started*"):
        try:
            os.kill(json.loads(path.read_text())[2], signal.SIGKILL)
        except ProcessLookupError:
            pass


def fake_gpus(gpu, count):
    lines = "\n".join(f"echo 'GPU {index}: A'" for index in range(count))
    executable(gpu.home / "bin" / "nvidia-smi", f"#!/bin/bash\n{lines}\n")


@pytest.mark.parametrize("code", [0, 7])
def test_one_process_gets_no_variables_and_its_exit_code_is_returned(gpu, code):
    gpu.acts(f"end {code}")
    done = gpu.train("--", *HARD)
    assert done.returncode == code
    assert done.stdout == "hello\n"
    assert gpu.started()[:2] == [["-m", "onesug_jax.main", "run", *HARD], {}]


def test_two_processes_of_one_host(gpu):
    gpu.acts("end 0", "end 0")
    done = gpu.train("--processes", "2", "--port=1234", "--", *HARD)
    assert done.returncode == 0, done.stderr
    for index in range(2):
        words, given, _ = gpu.started(index)
        assert words[3:] == HARD
        assert list(given.values()) == ["2", str(index), "127.0.0.1:1234"]
    assert sorted(done.stdout.splitlines()) == ["[0] hello", "[1] hello"]


def test_processes_divide_the_gpus(gpu):
    fake_gpus(gpu, 4)
    gpu.acts("end 0", "end 0")
    assert gpu.train("--processes=2").returncode == 0
    assert [gpu.started(index)[1]["JAX_LOCAL_DEVICE_IDS"] for index in range(2)] == ["0,1", "2,3"]
    done = gpu.train("--processes=3")
    assert done.returncode == 2 and "--processes=3" in done.stderr and "4 GPUs" in done.stderr
    gpu.acts("end 0", "end 0", "end 0")
    assert gpu.train("--processes=3", JAX_PLATFORMS="cpu").returncode == 0


def test_a_failing_process_stops_the_others(gpu):
    gpu.acts("wait", "end 9")
    began = time.monotonic()
    done = gpu.train("--processes=2")
    assert done.returncode == 9
    assert time.monotonic() - began < 15
    assert "process 1 ended with exit code 9" in done.stderr
    assert "[0] saved" in done.stdout
    assert gpu.gone(0)


def test_a_process_that_ignores_sigterm_is_killed(gpu):
    gpu.acts("end 9", "deaf")
    done = gpu.train("--processes=2", "--grace_seconds=1")
    assert done.returncode == 9
    assert "have not ended 1 s after SIGTERM" in done.stderr
    assert gpu.gone(1)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_stop_reaches_all_processes(gpu, signum, code):
    gpu.acts("wait", "wait")
    process = gpu.start("--processes=2")
    gpu.started(0), gpu.started(1)
    time.sleep(0.3)  # until they handle signals
    process.send_signal(signum)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == code
    assert "[0] saved" in out and "[1] saved" in out


def test_several_hosts_by_ssh(gpu):
    gpu.acts("end 0", "end 0")
    done = gpu.train("--hosts=me@gpu1,gpu2", "--port=1234", "--", *HARD)
    assert done.returncode == 0, done.stderr
    for index in range(2):
        words, given, _ = gpu.started(index)
        assert words == ["-m", "onesug_jax.main", "run", *HARD]
        assert list(given.values()) == ["2", str(index), "gpu1:1234"]
    assert sorted((gpu.home / "hosts").read_text().split()) == ["gpu2", "me@gpu1"]


def test_one_failing_host_stops_the_others(gpu):
    gpu.acts("end 6", "wait")
    done = gpu.train("--hosts=gpu1,gpu2")
    assert done.returncode == 6, done.stderr
    assert "[1] saved" in done.stdout
    assert gpu.gone(1)


def test_a_broken_connection_ends_the_process_behind_it(gpu):
    """After a kill of the script, other hosts only see their connection end."""
    gpu.acts("wait", "wait")
    process = gpu.start("--hosts=gpu1,gpu2")
    gpu.started(0), gpu.started(1)
    time.sleep(0.3)
    process.kill()
    process.wait(timeout=20)
    assert gpu.gone(0) and gpu.gone(1)
    process.communicate()


def slurm(index=0, **more):
    variables = {"JOB_ID": "7", "STEP_NODELIST": "n[01-02]", "NTASKS": "2", "PROCID": str(index)}
    variables |= {"STEP_NUM_NODES": "2", "LOCALID": "0", **more}
    return {f"SLURM_{name}": value for name, value in variables.items()}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n[01-02]", "n01"),
        ("n[3,5-7],m", "n3"),
        ("a-1,b", "a-1"),
        ("a.b.c", "a.b.c"),
        ("m,n[01-02]", "m"),
    ],
)
def test_a_slurm_task_gets_its_variables(gpu, nodes, first):
    gpu.acts("", "end 4")
    done = gpu.train("--", *HARD, **slurm(1, STEP_NODELIST=nodes))
    assert done.returncode == 4, done.stderr
    words, given, _ = gpu.started(1)
    assert words[3:] == HARD
    assert list(given.values()) == ["2", "1", f"{first}:20007"]


def test_tasks_on_one_node_take_a_gpu_each(gpu):
    fake_gpus(gpu, 2)
    gpu.acts("", "end 0")
    assert gpu.train(**slurm(1, STEP_NUM_NODES="1", LOCALID="1")).returncode == 0
    assert gpu.started(1)[1]["JAX_LOCAL_DEVICE_IDS"] == "1"
    more = slurm(1, STEP_NUM_NODES="1", LOCALID="1")
    assert gpu.train(**more, CUDA_VISIBLE_DEVICES="1").returncode == 0
    assert "JAX_LOCAL_DEVICE_IDS" not in gpu.started(1)[1]  # SLURM has assigned one already


def test_a_single_task_gets_no_variables(gpu):
    gpu.acts("end 0")
    assert gpu.train(**slurm(NTASKS="1", STEP_NODELIST="n1")).returncode == 0
    assert gpu.started()[1] == {}


def test_missing_slurm_variables_are_an_error(gpu):
    done = gpu.train(SLURM_STEP_NODELIST="a", SLURM_NTASKS="2")
    assert done.returncode == 2 and "SLURM_PROCID" in done.stderr


def test_in_an_allocation_srun_starts_the_tasks(gpu):
    executable(gpu.home / "bin" / "srun", '#!/bin/bash\nprintf "%s\\n" "$@"\n')
    done = gpu.train("--port=9", "--", *HARD, SLURM_JOB_ID="7")
    words = ["--kill-on-bad-exit=1", "bash", gpu.script, "--port=9", "--", *HARD]
    assert done.stdout.splitlines() == words


def test_the_line_for_sbatch(gpu):
    done = gpu.train("--print_sbatch", "--nodes=3", "--gpus_per_node=4", "--", *HARD)
    words = shlex.split(done.stdout)
    assert words[:4] == ["sbatch", "--nodes=3", "--ntasks-per-node=1", "--gpus-per-node=4"]
    assert shlex.split(words[5]) == ["bash", gpu.script, "--", *HARD]


@pytest.mark.parametrize(
    ("words", "more", "lines"),
    [
        ([], {}, [["python", "-m"]]),
        (["--processes=2"], {}, [["env", "ONESUG_PROCESSES=2"]] * 2),
        (["--hosts=a,b"], {}, [["ssh", "-o"]] * 2),
        ([], {"SLURM_JOB_ID": "7"}, [["srun", "--kill-on-bad-exit=1"]]),
        ([], slurm(), [["env", "ONESUG_PROCESSES=2"]]),
    ],
)
def test_a_dry_run_prints_and_runs_nothing(gpu, words, more, lines):
    done = gpu.train("--dry_run", *words, "--", *HARD, **more)
    assert done.returncode == 0, done.stderr
    found = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [[os.path.basename(line[0]), line[1]] for line in found] == lines
    assert not list(gpu.home.glob("started*")) and not (gpu.home / "hosts").exists()


def test_a_dry_run_prints_that_the_environment_is_made(gpu):
    done = gpu.train("--dry_run", ONESUG_PYTHON="")
    assert "launch/prepare.sh" in done.stdout.splitlines()[0]
    assert ".venv/bin/python" in done.stdout.splitlines()[1]


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["--host=a"], ["--host=a", "--help"]),
        (["--gin.STEPS=3"], ["--gin.STEPS", "after `--`"]),
        (["--hosts"], ["--hosts needs a value"]),
        (["--dry_run=1"], ["--dry_run takes no value"]),
        (["--processes=0"], ["--processes=0"]),
        (["--hosts=a,b", "--processes=2"], ["--processes", "--hosts"]),
    ],
)
def test_mistakes_are_named(gpu, words, messages):
    done = gpu.train(*words)
    assert done.returncode == 2
    assert all(word in done.stderr for word in messages)


def test_help_names_every_flag(gpu, project_root):
    printed = gpu.train("--help").stdout
    source = (project_root / "launch" / "gpu_train.sh").read_text()
    cases = re.search(r"case \"\$flag\" in(.*?)-h \| --help", source, flags=re.DOTALL)[1]
    flags = set(re.findall(r"--[a-z_]+", cases)) - {"--leashed"}
    assert len(flags) > 7
    assert flags <= set(re.findall(r"--[a-z_]+", printed))
