"""`tpu_train.sh --gke` with a fake kubectl and xpk: creation, logs, failures, deletion."""

import json
import shlex
import sys

import pytest

# Writes its words to kube.jsonl. The JobSet exists once applied, and ends with the text of `state`.
KUBECTL = r"""#!PYTHON
import json, pathlib, sys

home = pathlib.Path(__file__).resolve().parent.parent
words = sys.argv[1:]
with open(home / "kube.jsonl", "a") as file:
    print(json.dumps([pathlib.Path(__file__).name, *words]), file=file)
made = home / "jobset"
if pathlib.Path(__file__).name == "xpk" or words[0] == "apply":
    made.write_text("" if words[0] == "workload" else sys.stdin.read())
elif words[0] == "delete":
    made.unlink(missing_ok=True)
elif words[0] == "get" and words[1] == "jobset" and made.exists():
    state = (home / "state").read_text() if (home / "followed").exists() else ""
    print(words[2] if "name" in words[-1] else state, end="")
elif words[0] == "get" and words[1] == "pods":
    failed = "shop-slice-0-3-x host-3 5\n"
    print(failed if "Failed" in words[-1] else "shop-slice-0-0-x" if made.exists() else "", end="")
elif words[0] == "logs" and "--follow" in words:
    (home / "followed").write_text("")
    print("step 1 of 2")
elif words[0] == "logs":
    print(f"the end of {words[-1]}")
"""
WORDS = ["--gin_file=gin_configs/tpu/v5e_16.gin", "--gin.LOG=gs://data/it's $(here)"]
FLAGS = ["--gke", "--name=shop", "--type=v5litepod-16", "--work_dir=gs://b/shop", "--image=i:1"]


@pytest.fixture
def kube(cloud):
    """The fake cloud with a kubectl; the file `state` is the terminal state of the JobSet."""
    cloud.write("kubectl", KUBECTL.replace("#!PYTHON", f"#!{sys.executable} -S"))
    (cloud.home / "state").write_text("Completed")
    return cloud


def calls(cloud, program="kubectl"):
    path = cloud.home / "kube.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [words[1:] for words in map(json.loads, lines) if words[0] == program]


def test_the_manifest_says_what_to_run_and_where(kube):
    words = ("--slices=2", "--spot", "--service_account=trainer", "--print_jobset")
    done = kube.train(*FLAGS, *words, "--", *WORDS)
    assert done.returncode == 0, done.stderr
    assert not calls(kube) and not kube.calls()
    manifest = json.loads(done.stdout)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    [replicated] = manifest["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 2
    job = replicated["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4 and job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["serviceAccountName"] == "trainer"
    [container] = pod["containers"]
    assert "securityContext" not in container, "a bucket needs no mount"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"][2:] == [
        *("container", "8", "--gin.WORK_DIR=gs://b/shop", WORDS[0]),
        WORDS[1].replace("$(", "$$("),
    ]
    names = [one["name"] for one in container["env"]]
    assert names == ["MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID"]


def test_interruptions_restart_without_counting(kube):
    spec = json.loads(kube.train(*FLAGS, "--retries=3", "--print_jobset").stdout)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    disrupted, stopped = job["podFailurePolicy"]["rules"]
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert stopped["onExitCodes"]["values"] == [143]
    assert disrupted["action"] == stopped["action"] == "FailJob"
    [rule] = spec["failurePolicy"]["rules"]
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert spec["failurePolicy"]["maxRestarts"] == 3
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # such rules require it


def test_without_xpk_the_manifest_is_applied_and_followed(kube):
    done = kube.train(*FLAGS, "--cluster=c", "--zone=z", "--delete_when_done", "--", *WORDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 1 of 2" in done.stdout
    words = [" ".join(words[:2]) for words in calls(kube)]
    assert "apply -f" in words and words[-1] == "delete jobset"
    assert not (kube.home / "jobset").exists()


def test_with_xpk_it_creates_the_workload(kube):
    kube.write("xpk", (kube.home / "bin" / "kubectl").read_text())
    done = kube.train(*FLAGS, "--cluster=c", "--slices=2", "--", *WORDS)
    assert done.returncode == 0, done.stdout + done.stderr
    [create] = calls(kube, "xpk")
    flags = ("cluster=c", "workload=shop", "tpu-type=v5litepod-16", "num-slices=2")
    assert {f"--{flag}" for flag in (*flags, "docker-image=i:1")} <= set(create)
    command = next(word for word in create if word.startswith("--command="))
    assert shlex.split(command.partition("=")[2])[2:4] == ["container", "8"]
    assert not any(words[0] == "apply" for words in calls(kube))
    assert "step 1 of 2" in done.stdout


def test_a_failed_pod_is_shown_with_its_host(kube):
    (kube.home / "state").write_text("Failed")
    done = kube.train(*FLAGS)
    assert done.returncode == 1
    assert "--- shop-slice-0-3-x on host host-3, exit code 5:" in done.stdout
    assert "the end of shop-slice-0-3-x" in done.stdout
    assert ["logs", "--tail=50", "shop-slice-0-3-x"] in calls(kube)


def test_a_dry_run_and_a_delete(kube):
    done = kube.train(*FLAGS, "--dry_run", "--cluster=c")
    assert done.returncode == 0, done.stderr
    assert "kubectl apply" in done.stdout and "get-credentials c" in done.stdout
    assert not calls(kube) and not kube.calls()
    assert kube.train("--gke", "--name=shop", "--delete").returncode == 0
    assert calls(kube) == [["delete", "jobset", "shop", "--ignore-not-found"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gke", "--work_dir=gs://b/shop"], "--image"),
        ([*FLAGS, "--type=v5p-768"], "--topology"),
    ],
)
def test_missing_flags_are_named(kube, words, message):
    done = kube.train(*words)
    assert done.returncode == 2 and message in done.stderr
    assert not calls(kube)
