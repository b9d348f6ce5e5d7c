"""Training on a fake Cloud TPU: creation, copying, logs, restarts, deletion."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from tests.launch.conftest import HARD, INTERRUPTIBLE


def test_a_run_from_nothing_to_its_end(cloud):
    cloud.plan(before=["WAITING_FOR_RESOURCES", "PROVISIONING"], refuse=3)
    done = cloud.train("--name=shop", "--zone", "z-1", "--project=p", "--", *HARD)
    assert done.returncode == 0, done.stderr
    for line in ("shop is WAITING_FOR_RESOURCES", "PROVISIONING", "training, start 1", "trained"):
        assert line in done.stdout
    assert "costs money" in done.stdout
    [create] = cloud.calls("queued-resources", "create")
    assert create[2] == "shop"
    flags = "node-id=shop accelerator-type=v5litepod-8 runtime-version=v2-alpha-tpuv5-lite"
    flags += " zone=z-1 project=p"
    assert {f"--{flag}" for flag in flags.split()} <= set(create)
    assert "--spot" not in create
    assert cloud.has_tpu()


def test_words_arrive_as_they_were_written(cloud):
    done = cloud.train("--", *HARD)
    assert done.returncode == 0, done.stderr
    words = (cloud.vm() / "words").read_text().splitlines()
    assert words == ["-m", "onesug_jax.main", "run", "--gin.WORK_DIR=work/onesug", *HARD]
    assert (cloud.vm() / "processes").read_text() == "alone\n"
    assert (cloud.vm() / "onesug" / "work" / "onesug" / "starts").exists()


def test_the_environment_is_made_of_the_lock_with_the_extra(cloud):
    assert cloud.train().returncode == 0
    installed = (cloud.vm() / "installed").read_text()
    assert re.search(r"uv pip install .* -r \S+/requirements.lock.txt", installed)
    assert re.search(r"-c \S+/requirements.lock.txt -e \S+\[tpu\]", installed)
    assert cloud.train().returncode == 0
    assert (cloud.vm() / "installed").read_text() == installed  # once


def test_a_tpu_that_is_there_is_used_again(cloud):
    assert cloud.train().returncode == 0
    assert cloud.train().returncode == 0
    assert len(cloud.calls("queued-resources", "create")) == 1
    starts = (cloud.vm() / "onesug" / "work" / "onesug" / "starts").read_text()
    assert starts.count("t1v-w-0") == 2


def test_after_preemption_the_run_goes_on(cloud):
    """The first TPU is preempted during training; the second finds its folder in the bucket."""
    cloud.plan(workers=2, preempt=3, starts=2)
    done = cloud.train(
        "--spot", "--type=v5litepod-16", "--work_dir=gs://b/shop", "--", "--gin.LOG=gs://data/l"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "preempted; restart 1 of 20" in done.stdout
    assert done.stdout.index("training, start 1") < done.stdout.index("training, start 2")
    creates = cloud.calls("queued-resources", "create")
    assert len(creates) == 2 and creates[0] == creates[1] and "--spot" in creates[0]
    assert len(cloud.calls("queued-resources", "delete")) == 1
    starts = (cloud.home / "buckets" / "b" / "shop" / "starts").read_text().split()
    assert sorted(starts) == ["t1v-w-0", "t1v-w-0", "t1v-w-1", "t1v-w-1"]
    for worker in range(2):
        vm = cloud.vm(made=2, worker=worker)
        words = (vm / "words").read_text().splitlines()[3:]
        assert words == ["--gin.WORK_DIR=gs://b/shop", "--gin.LOG=gs://data/l"]
        assert (vm / "mirror").read_text() == f"{vm}/onesug/mirror\n"
        assert (vm / "processes").read_text() == "auto\n"


def test_a_failed_worker_is_shown_with_its_host_and_number(cloud):
    """Worker 1 fails: its last 50 lines, and no other worker's."""
    cloud.plan(workers=2, code=5, failing=1)
    done = cloud.train("--type=v5litepod-16", "--work_dir=gs://b/shop")
    assert done.returncode == 5, done.stdout + done.stderr
    shown = done.stdout.split("the workers that failed:\n")[1].splitlines()
    assert shown[0] == "--- worker 1 on host t1v-w-1, exit code 5, last 50 lines:"
    assert shown[1:51] == [str(number) for number in range(51, 101)]
    assert "---" not in "".join(shown[51:])


def test_maintenance_restarts_the_training_where_it_is(cloud):
    """All workers get SIGTERM, save, and end with 143; the TPU stays."""
    cloud.plan(workers=2, preempt=2, starts=2, how="maintenance")
    done = cloud.train("--type=v5litepod-16", "--work_dir=gs://b/shop")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stopped on a worker (maintenance?); restart 1 of 20" in done.stdout
    assert "training, start 2" in done.stdout
    assert len(cloud.calls("queued-resources", "create")) == 1


def test_several_slices_are_one_training(cloud):
    """Two slices of two hosts are requested together and run one training."""
    cloud.plan(workers=2)
    words = ("--slices=2", "--type=v5litepod-16", "--work_dir=gs://b/shop", "--name=shop")
    done = cloud.train(*words, "--internal_ips", "--data_disk=source=d,mode=read-only")
    assert done.returncode == 0, done.stdout + done.stderr
    [create] = cloud.calls("queued-resources", "create")
    flags = {"--node-count=2", "--node-prefix=shop", "--internal-ips"}
    assert flags | {"--data-disk=source=d,mode=read-only"} <= set(create)
    assert not any(word.startswith("--node-id") for word in create)
    for worker in range(4):
        assert (cloud.vm(worker=worker) / "processes").read_text() == "auto\n"
    nodes = {words[2] for words in cloud.calls("tpu-vm", "ssh")}
    assert nodes == {"shop-0", "shop-1"}


def test_a_preempted_slice_restarts_the_training(cloud):
    cloud.plan(workers=1, preempt=2, starts=2)
    done = cloud.train("--slices=2", "--spot", "--type=v5litepod-4", "--work_dir=gs://b/shop")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "preempted; restart 1 of 20" in done.stdout


def test_the_reason_of_a_failed_copy_is_shown(cloud):
    cloud.plan(silent=True)
    done = cloud.train()
    assert done.returncode == 1
    assert "the disk of a worker is full" in done.stderr


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="needs ssh-keygen")
def test_a_key_with_a_passphrase_is_refused(cloud):
    folder = cloud.home / ".ssh"
    folder.mkdir()
    for name, phrase in (("google_compute_engine", "secret"), ("other", "")):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-f", str(folder / name)]
        subprocess.run(command, check=True)
    done = cloud.train(SSH_AUTH_SOCK="")
    assert done.returncode == 1 and not cloud.calls()
    assert "has a passphrase" in done.stderr and "ssh-add" in done.stderr
    free = cloud.train(f"--ssh_flags=--ssh-key-file={folder / 'other'}", SSH_AUTH_SOCK="")
    assert free.returncode == 0, free.stderr


def test_ssh_never_asks(cloud):
    assert cloud.train().returncode == 0
    for words in cloud.calls("tpu-vm", "ssh"):
        assert "--ssh-flag=-o BatchMode=yes" in words


@pytest.mark.long
@pytest.mark.parametrize("how", ["node", "warned"])
def test_preemption_is_recognised_by_other_signs(cloud, how):
    """Only the VM shows it, or training gets SIGTERM before gcloud shows it."""
    cloud.plan(preempt=2, starts=2, how=how)
    done = cloud.train("--spot", "--work_dir=gs://b/shop")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "preempted; restart 1 of 20" in done.stdout
    assert len(cloud.calls("queued-resources", "create")) == 2


def test_restarts_are_limited(cloud):
    cloud.plan(preempt=2, starts=9)
    done = cloud.train("--spot", "--work_dir=gs://b/shop", "--retries=0")
    assert done.returncode == 1
    assert "--retries=0" in done.stderr


@pytest.mark.parametrize("spot", [[], ["--spot", "--work_dir=gs://b/shop"]])
def test_the_exit_code_is_that_of_the_training(cloud, spot):
    cloud.plan(code=7)
    done = cloud.train(*spot)
    assert done.returncode == 7
    assert "failed with exit code 7" in done.stdout
    assert cloud.has_tpu()


def test_one_failing_worker_ends_the_others(cloud):
    """Worker 0 fails at once; worker 1, which waits, is stopped."""
    cloud.plan(workers=2, code=5)
    slow = cloud.home / "vm_bin" / "training"
    slow.write_text(slow.read_text().replace("while [", 'while [ "$HOSTNAME" = t1v-w-1 ] || ['))
    done = cloud.train("--type=v5litepod-16", "--work_dir=gs://b/shop")
    assert done.returncode == 5, done.stdout + done.stderr
    assert "saved" in (cloud.vm(worker=1) / "onesug" / "run" / "log").read_text()


def begun(cloud, *words):
    """The running script, whose training waits for a second start."""
    cloud.plan(starts=2)
    process = subprocess.Popen(
        [*INTERRUPTIBLE, *cloud.command(*words)],
        env=cloud.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    cloud.wait_for(cloud.vm() / "words")
    return process


@pytest.mark.long
def test_the_same_command_finds_the_training_again(cloud):
    process = begun(cloud)
    os.killpg(process.pid, signal.SIGKILL)  # the connection is lost, the training continues
    process.communicate()
    done = cloud.train("--", "--gin.SEED=2")
    assert done.returncode == 1 and "another training" in done.stderr

    again = subprocess.Popen(
        cloud.command(), env=cloud.environment(), stdout=subprocess.PIPE, text=True
    )
    starts = cloud.vm() / "onesug" / "work" / "onesug" / "starts"
    assert "is running" in "".join(iter(again.stdout.readline, "training, start 1\n"))
    assert starts.read_text().count("t1v") == 1
    os.killpg(int((cloud.vm() / "onesug" / "run" / "pid").read_text()), signal.SIGTERM)
    rest, _ = again.communicate(timeout=30)
    assert "saved" in rest and "training, start 2" in rest  # 143 is no failure
    assert again.returncode == 0


def test_restart_ends_the_running_training(cloud):
    process = begun(cloud)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = cloud.train("--restart")
    assert done.returncode == 0, done.stderr
    assert "training, start 2" in done.stdout


def test_an_interruption_does_not_end_the_training(cloud):
    process = begun(cloud)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "training continues" in out
    assert not (cloud.vm() / "onesug" / "run" / "exit").exists()


def test_a_reboot_starts_the_training_again(cloud):
    process = begun(cloud)
    pid = cloud.vm() / "onesug" / "run" / "pid"
    os.killpg(int(pid.read_text()), signal.SIGKILL)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "disappeared" in out and "training, start 2" in out


def test_delete_only_deletes(cloud):
    assert cloud.train().returncode == 0
    before = len(cloud.calls())
    assert cloud.train("--delete").returncode == 0
    assert [words[1] for words in cloud.calls()[before:]] == ["describe", "delete"]
    assert "--force" in cloud.calls()[-1]
    assert not cloud.has_tpu()
    again = cloud.train("--delete")
    assert again.returncode == 0 and "there is no onesug" in again.stdout


@pytest.mark.parametrize("code", [0, 3])
def test_delete_when_done(cloud, code):
    cloud.plan(code=code)
    assert cloud.train("--delete_when_done").returncode == code
    assert not cloud.has_tpu()


def test_a_refused_request_is_reported(cloud):
    cloud.plan(before=["FAILED"])
    done = cloud.train()
    assert done.returncode == 1
    assert "request for v5litepod-8 failed" in done.stderr


def test_errors_of_gcloud_are_shown(cloud):
    cloud.plan(broken=True)
    done = cloud.train()
    assert done.returncode == 1
    assert "PERMISSION_DENIED" in done.stderr
    assert len(cloud.calls()) == 1


def test_the_wait_in_the_queue_is_limited(cloud):
    cloud.plan(before=["WAITING_FOR_RESOURCES"] * 50)
    done = cloud.train("--wait_minutes=0")
    assert done.returncode == 1
    assert "--wait_minutes=0" in done.stderr and "keeps its place" in done.stderr
    assert cloud.has_tpu()


def test_a_dry_run_prints_each_command_and_runs_none(cloud):
    words = ["--dry_run", "--spot", "--work_dir=gs://b/shop", "--delete_when_done"]
    done = cloud.train(*words, "--network=n", "--create_flags=--reserved -q", "--", *HARD)
    assert done.returncode == 0, done.stderr
    assert not cloud.calls() and not (cloud.home / "state.json").exists()
    commands = [shlex.split(line) for line in done.stdout.splitlines() if line[0] != "#"]
    kinds = [words[4] if words[0] == "gcloud" else words[0] for words in commands]
    assert kinds == ("describe create describe describe ssh git scp ssh ssh ssh ssh delete".split())
    create = commands[1]
    assert {"--spot", "--network=n", "--reserved", "-q"} <= set(create)
    start = next(w for words in commands for w in words if " start " in w)
    assert shlex.split(start.split(" start ")[1])[3:] == HARD


def test_a_dry_run_of_delete(cloud):
    done = cloud.train("--dry_run", "--delete", "--name=shop")
    assert "queued-resources delete shop --force" in done.stdout
    assert not cloud.calls()


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["--nam=x"], ["--nam=x", "--help"]),
        (["--gin.STEPS=3"], ["--gin.STEPS", "after `--`"]),
        (["--name"], ["--name needs a value"]),
        (["--name", "--spot"], ["--name needs a value"]),
        (["--spot=1"], ["--spot takes no value"]),
        (["--name=Shop"], ["--name=Shop", "lower-case"]),
        (["--poll_seconds=0"], ["--poll_seconds=0"]),
        (["--retries=x"], ["--retries=x"]),
        (["--type=tpu7x-8"], ["--type=tpu7x-8", "--gke"]),
        (["--type=v5e", "--version=a"], ["--type=v5e", "number"]),
        (["--type=v5litepod-13"], ["--type=v5litepod-13", "multiple of 4"]),
        (["--type=v5p-768", "--topology=8x8x8"], ["--topology=8x8x8", "384 chips"]),
        (["--slices=0"], ["--slices=0"]),
        (["--slices=2"], ["2 machines", "gs://"]),
        (["--gke"], ["--gke", "gs://", "--force_local"]),
        (["--spot"], ["--spot", "gs://", "--force_local"]),
        (["--spot", "--", "--gin.WORK_DIR=/a"], ["--spot", "/a", "--force_local"]),
        (["--type=v5litepod-16"], ["4 machines", "gs://", "--force_local"]),
        (["--", "--dry_run"], ["--dry_run"]),
    ],
)
def test_mistakes_are_named_before_anything_is_requested(cloud, words, messages):
    done = cloud.train(*words)
    assert done.returncode == 2
    assert all(word in done.stderr for word in messages), done.stderr
    assert not cloud.calls()


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_the_runtime_version_follows_the_type(cloud, kind, version):
    done = cloud.train("--dry_run", TPU_TYPE=kind, TPU_NAME="from-environment")
    assert f"--accelerator-type={kind} --runtime-version={version}" in done.stdout
    assert "create from-environment" in done.stdout


def test_more_workers_than_expected_need_a_common_folder(cloud):
    cloud.plan(workers=2)
    done = cloud.train()
    assert done.returncode == 2
    assert "2 machines" in done.stderr and "--delete" in done.stderr
    assert cloud.train("--force_local").returncode == 0


def test_without_gcloud_the_message_has_the_fix(cloud):
    bin_folder = cloud.home / "few"
    bin_folder.mkdir()
    for name in ("bash", "dirname", "cksum", "cut", "sed"):
        (bin_folder / name).symlink_to(shutil.which(name))
    (bin_folder / "python3").symlink_to(sys.executable)
    done = cloud.train(PATH=str(bin_folder))
    assert done.returncode == 1
    assert "no gcloud on PATH" in done.stderr and "cloud.google.com/sdk" in done.stderr


def test_uncommitted_changes_are_reported_and_not_copied(cloud):
    (cloud.repository / "launch" / "tpu_worker.sh").write_text("exit 9\n")
    done = cloud.train()
    assert done.returncode == 0, done.stderr
    assert "uncommitted changes are not copied" in done.stdout


def test_help_names_every_flag(cloud, project_root):
    printed = cloud.train("--help").stdout
    source = (project_root / "launch" / "tpu_train.sh").read_text()
    cases = re.search(r"case \"\$flag\" in(.*?)-h \| --help", source, flags=re.DOTALL)[1]
    flags = set(re.findall(r"--[a-z_]+", cases))
    assert len(flags) > 15
    assert flags <= set(re.findall(r"--[a-z_]+", printed))
