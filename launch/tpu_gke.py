"""Trains on TPU slices of a GKE cluster; `tpu_train.sh --gke` calls it.

XPK creates the workload if it is installed, else kubectl applies a JobSet: one replicated job per
slice, one pod per host. A preempted pod, or one that saved and ended by a signal (exit code 143),
restarts the JobSet without counting as a retry; other failures count. The log of the first pod is
shown until the JobSet ends. If it fails, the last lines of every failed pod are shown.

Needs Python 3.8 and kubectl, and no package.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from typing import Any

from tpu_slices import FlagError, Slice

WORKER = "/onesug/code/launch/tpu_worker.sh"  # in the image, see Dockerfile
STOPPED = 143  # SIGTERM: the training saved and ended
LAST_LINES = 50  # shown of a failed pod
_NAME = "jobset.sigs.k8s.io/jobset-name"
_FIRST = "jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
_FAILED = (
    '{range .items[?(@.status.phase=="Failed")]}{.metadata.name} {.spec.nodeName} '
    '{.status.containerStatuses[0].state.terminated.exitCode}{"\\n"}{end}'
)


def command(options: argparse.Namespace, chosen: Slice) -> list[str]:
    """The command of a pod."""
    processes = str(chosen.hosts * options.slices)
    words = [word.replace("$(", "$$(") for word in options.words]  # Kubernetes expands $(NAME)
    return ["bash", WORKER, "container", processes, *words]


def jobset(options: argparse.Namespace, chosen: Slice) -> str:
    """The JobSet's manifest, as JSON."""
    select = {
        "cloud.google.com/gke-tpu-accelerator": chosen.generation.label,
        "cloud.google.com/gke-tpu-topology": chosen.topology,
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 300,
        "nodeSelector": select,
        "containers": [
            {
                "name": "train",
                "image": options.image,
                "command": command(options, chosen),
                "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
                "resources": {"limits": {"google.com/tpu": chosen.chips_per_host}},
                "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
            }
        ],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    if options.spot:
        select["cloud.google.com/gke-spot"] = "true"
        pod["tolerations"] = [
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
        ]
    if options.slices > 1:
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
        pod["containers"][0]["env"] = _megascale(options)
    interrupted = [
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": "train", "operator": "In", "values": [STOPPED]},
        },
    ]
    job = {
        "parallelism": chosen.hosts,
        "completions": chosen.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": interrupted},
        "template": {"spec": pod},
    }
    again = {
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    manifest = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": options.name, "annotations": exclusive},
        "spec": {
            "failurePolicy": {"maxRestarts": options.retries, "rules": [again]},
            "replicatedJobs": [
                {"name": "slice", "replicas": options.slices, "template": {"spec": job}}
            ],
        },
    }
    return json.dumps(manifest, indent=2)


def _megascale(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Environment variables by which libtpu finds the other slices."""
    index = {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/job-index']"}
    return [
        {
            "name": "MEGASCALE_COORDINATOR_ADDRESS",
            "value": f"{options.name}-slice-0-0.{options.name}",
        },
        {"name": "MEGASCALE_NUM_SLICES", "value": str(options.slices)},
        {"name": "MEGASCALE_SLICE_ID", "valueFrom": {"fieldRef": index}},
    ]


def xpk(options: argparse.Namespace, chosen: Slice) -> list[str]:
    """The XPK command that creates the workload."""
    return [
        *("xpk", "workload", "create"),
        *(f"--cluster={options.cluster}", f"--workload={options.name}"),
        *(f"--tpu-type={options.type}", f"--num-slices={options.slices}"),
        *(f"--docker-image={options.image}", f"--max-restarts={options.retries}"),
        *("--termination-grace-period-seconds=300", *_where(options)),
        *(["--spot"] if options.spot else []),
        f"--command={shlex.join(command(options, chosen))}",
    ]


def _where(options: argparse.Namespace) -> list[str]:
    flags = {"zone": options.zone, "project": options.project}
    return [f"--{name}={value}" for name, value in flags.items() if value]


class Cluster:
    """Runs commands, or prints them."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.name = options, options.name
        self.xpk = shutil.which("xpk") is not None

    def run(self, words: list[str], stdin: str | None = None) -> subprocess.CompletedProcess:
        """Runs a command and captures its output; a dry run only prints it."""
        if self.options.dry_run:
            print(shlex.join(words) + (f" <<'E'\n{stdin}\nE" if stdin else ""))
            return subprocess.CompletedProcess(words, 0, "", "")
        return subprocess.run(words, input=stdin, capture_output=True, text=True)

    def check(self, words: list[str], stdin: str | None = None) -> None:
        """Runs a command.

        Raises:
          SystemExit: 1 with its output, if it fails.
        """
        done = self.run(words, stdin)
        if done.returncode:
            sys.exit(f"error: {shlex.join(words)} failed:\n{done.stderr or done.stdout}")

    def get(self, resource: str, path: str, *flags: str) -> str:
        """A field of a resource; empty if there is no resource."""
        return self.run(["kubectl", "get", *resource.split(), *flags, f"-o=jsonpath={path}"]).stdout

    def create(self, chosen: Slice) -> None:
        """Creates the workload, unless one of this name exists."""
        options = self.options
        if options.cluster:
            words = ["gcloud", "container", "clusters", "get-credentials", options.cluster]
            self.check([*words, *_where(options)])
        if self.get(f"jobset {self.name} --ignore-not-found", "{.metadata.name}"):
            print(f"[tpu] {self.name} exists already; its log follows; --delete removes it")
        elif self.xpk and options.cluster:
            self.check(xpk(options, chosen))
        else:
            self.check(["kubectl", "apply", "-f", "-"], jobset(options, chosen))

    def delete(self) -> None:
        """Deletes the workload and its pods."""
        self.check(["kubectl", "delete", "jobset", self.name, "--ignore-not-found"])

    def follow(self) -> int:
        """Shows the first pod's log, also after restarts, until the JobSet ends; returns 0 or 1."""
        if self.options.dry_run:
            self.get("pods", "{.items[0].metadata.name}", f"-l={_NAME}={self.name},{_FIRST}")
            print(f"kubectl logs --follow {self.name}-slice-0-0-...")
            self.get(f"jobset {self.name}", "{.status.terminalState}")
            return 0
        shown, silent = "", 0
        while True:
            state = self.get(f"jobset {self.name}", "{.status.terminalState}")
            selector = f"-l={_NAME}={self.name},{_FIRST}"
            pod = self.get("pods", "{.items[0].metadata.name}", selector)
            if pod and pod != shown:
                if subprocess.run(["kubectl", "logs", "--follow", pod]).returncode == 0:
                    print(f"[tpu] {pod} has ended", flush=True)
                    shown = pod
                    continue
            if state:
                return 0 if state == "Completed" else self.show_failed()
            exists = self.get(f"jobset {self.name} --ignore-not-found", "{.metadata.name}")
            silent = 0 if exists else silent + 1
            if silent >= 30:
                sys.exit(f"error: no JobSet {self.name}; it was deleted, or kubectl fails.")
            time.sleep(self.options.poll_seconds)

    def show_failed(self) -> int:
        """Shows the last lines of every failed pod, with its host and exit code."""
        print(f"[tpu] training has failed; the last {LAST_LINES} lines of the failed pods:")
        for line in self.get("pods", _FAILED, f"-l={_NAME}={self.name}").splitlines():
            pod, host, code = (line.split() + ["?", "?"])[:3]
            print(f"--- {pod} on host {host}, exit code {code}:", flush=True)
            subprocess.run(["kubectl", "logs", f"--tail={LAST_LINES}", pod])
        return 1


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("name", "type", "topology", "project", "zone", "cluster", "image"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--service_account", default="")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--retries", type=int, default=20)
    parser.add_argument("--poll_seconds", type=float, default=20.0)
    for name in ("spot", "dry_run", "print_jobset", "delete", "delete_when_done"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("words", nargs="*")
    return parser.parse_args(words)


def main() -> int:
    options = parse(sys.argv[1:])
    chosen = Slice.parse(options.type, options.topology)
    if not chosen.topology:
        raise FlagError(
            f"--type={options.type}: {chosen.chips} chips have several topologies; give --topology"
        )
    cluster = Cluster(options)
    if options.delete:
        cluster.delete()
        return 0
    if not options.image:
        raise FlagError("--gke needs --image=IMAGE: build and push Dockerfile, and give its name")
    if options.print_jobset:
        print(jobset(options, chosen))
        return 0
    if not options.dry_run and not shutil.which("kubectl"):
        sys.exit("error: no kubectl on PATH: `gcloud components install kubectl`.")
    cluster.create(chosen)
    code = cluster.follow()
    if options.delete_when_done:
        cluster.delete()
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FlagError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
