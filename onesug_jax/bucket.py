"""A work directory in a Cloud Storage bucket as a plain folder, which is what the library reads.

It is mounted with gcsfuse where that is installed; else gsutil copies what suggestions and reports
need. A local work directory is left where it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess

from onesug_jax.errors import UserError

# Folders that nothing reads which shows a trained model.
UNREAD = r"^(versions/\d+/)?(simulated|log|examples|rewards)/"


def as_folder(work_dir: str, beside: str = "buckets") -> str:
    """The folder, an absolute path, in which the files of `work_dir` lie.

    Args:
      work_dir: a folder, or gs://BUCKET/PATH.
      beside: where buckets are mounted or copied to, each under its name. What was copied earlier
        is brought up to date.

    Raises:
      UserError: there is no such folder, or the bucket cannot be mounted or copied.
    """
    if not work_dir.startswith("gs://"):
        path = os.path.abspath(os.path.expanduser(work_dir))
        if not os.path.isdir(path):
            raise UserError(f"{work_dir}: expected a work directory, found no such folder.")
        return path
    bucket, _, path = work_dir.removeprefix("gs://").strip("/").partition("/")
    mount = os.path.abspath(os.path.join(beside, bucket))
    folder = os.path.join(mount, path)
    if shutil.which("gcsfuse"):
        os.makedirs(mount, exist_ok=True)
        if not os.path.ismount(mount):
            _run(["gcsfuse", "--implicit-dirs", bucket, mount], work_dir)
        if not os.path.isdir(folder):
            raise UserError(f"{work_dir}: expected a work directory, found no such folder there.")
    elif shutil.which("gsutil"):
        os.makedirs(folder, exist_ok=True)
        source = f"gs://{bucket}/{path}".rstrip("/")
        _run(["gsutil", "-m", "-q", "rsync", "-r", "-x", UNREAD, source, folder], work_dir)
    else:
        raise UserError(
            f"{work_dir}: needs gcsfuse or gsutil on PATH, found neither. Install one of them "
            "(gsutil is part of the Google Cloud CLI), or copy the work directory here."
        )
    return folder


def _run(command: list[str], work_dir: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["nothing was said"]
        raise UserError(
            f"{work_dir}: {command[0]} failed ({said[0]}). See that the bucket is there and that "
            "you may read it: `gcloud auth login --update-adc`."
        )
