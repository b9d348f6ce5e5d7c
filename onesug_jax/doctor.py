"""A report on this machine: versions, devices, memory, and a command that fixes each problem.

Reads package metadata instead of importing packages where possible, so that it takes one second and
also works when the installation is broken. It changes nothing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PYTHON = ((3, 11), (3, 13))
SHOWN = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "seqio",
    "tensorflow",
    "sentencepiece",
    "protobuf",
)
_LARGE = ("sentencepiece", "tensorflow", "seqio", "jax", "flax", "orbax.checkpoint")


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])


def _fits(version: str, ranges: str) -> bool:
    """Whether `version` lies in `ranges`, a comma-separated list such as `>=0.2.1,<0.2.3`."""
    have = _numbers(version)
    for bound in filter(None, ranges.split(",")):
        read = re.match(r"\s*(>=|<=|==|<|>)\s*(\S+)", bound)
        if read is None:
            raise ValueError(f"{bound!r} is not a range of versions")
        operator, limit = read[1], _numbers(read[2])
        width = max(len(have), len(limit))
        a, b = (numbers + (0,) * (width - len(numbers)) for numbers in (have, limit))
        if not {">=": a >= b, "<=": a <= b, "==": a == b, "<": a < b, ">": a > b}[operator]:
            return False
    return True


def requirements(path: str) -> dict[str, str]:
    """Package -> version ranges of a requirements file, without comments and markers."""
    with open(path, encoding="utf-8") as file:
        return _ranges(file)


def _ranges(lines: Iterable[str]) -> dict[str, str]:
    ranges = {}
    for line in lines:
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*([<>=][^;#\\]*)", line)
        if match:
            ranges[match[1]] = match[2].strip()
    return ranges


def _needed() -> dict[str, str]:
    """Package -> version ranges: requirements.txt of a checkout, or the dependencies of the
    installed package without extras.
    """
    path = os.path.join(ROOT, "requirements.txt")
    if os.path.exists(path):
        return requirements(path)
    try:
        lines = importlib.metadata.requires("onesug_jax") or ()
    except importlib.metadata.PackageNotFoundError:
        return {}
    return _ranges(line for line in lines if "extra ==" not in line)


def package_problems(ranged: dict[str, str], installed=_installed) -> list[str]:
    """One line for each package that is missing or outside its range, with the fix."""
    problems = []
    for package, ranges in ranged.items():
        version = installed(package)
        if version is None:
            state = "is missing"
        elif not _fits(version, ranges):
            state = f"is {version}, outside {ranges}"
        else:
            continue
        fix = f'{sys.executable} -m pip install "{package}{ranges}"'
        why = ""
        if package == "sentencepiece" and version:
            why = " (later ones clash with the protobuf that TensorFlow needs)"
        problems.append(f"{package} {state}{why}: {fix}")
    return problems


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def _memory() -> str:
    try:
        page, free = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_AVPHYS_PAGES")
        total = page * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return "unknown"
    return f"{_gib(total)}, {_gib(page * free)} of it unused; {os.cpu_count()} cores"


def _devices() -> tuple[str, str | None]:
    """JAX's devices as text, and a problem if it cannot start."""
    try:
        import jax

        devices = jax.devices()
    except Exception as error:
        text = str(error).strip().splitlines()
        return "none", f"jax cannot start: {text[0] if text else error!r}. Fix: {_INSTALL}"
    kinds = sorted({device.device_kind for device in devices})
    return f"{len(devices)} x {', '.join(kinds)} ({devices[0].platform})", None


_SCRIPT = os.path.join(ROOT, "launch", "prepare.sh")
_INSTALL = "pip install --upgrade onesug_jax"
if os.path.exists(_SCRIPT):  # a checkout
    _INSTALL = f"bash {os.path.relpath(_SCRIPT)}"


def _work_dir(path: str) -> tuple[str, str | None]:
    parent = path
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    line = f"{path}, {_gib(shutil.disk_usage(parent).free)} free"
    if not os.path.isdir(parent):
        return line, f"{parent} is a file, not a folder: choose another --gin.WORK_DIR"
    if not os.access(parent, os.W_OK):
        return line, f"no permission to write in {parent}: choose another --gin.WORK_DIR"
    return line, None


def _import_problem() -> str | None:
    large = ", ".join(name for name in _LARGE if importlib.util.find_spec(name.split(".")[0]))
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", f"import {large}"],
        env=quiet,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return f"the packages cannot be imported in one process: {last}. Fix: {_INSTALL}"


def report(work_dir: str, *, imports: bool = False) -> int:
    """Prints the report.

    Args:
        work_dir: the folder whose disk and permissions are checked.
        imports: also import the large packages together in a new process (some seconds).

    Returns:
        1 when something required is missing, else 0.
    """
    problems, notes = [], []
    python = sys.version_info[:2]
    print(
        f"python           {platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    if not PYTHON[0] <= python <= PYTHON[1]:
        low, high = (".".join(map(str, version)) for version in PYTHON)
        problems.append(f"Python {low} to {high} is needed: remove .venv, then {_INSTALL}")
    for package in SHOWN:
        print(f"{package:<16} {_installed(package) or 'missing'}")
    problems += package_problems(_needed())
    lock = os.path.join(ROOT, "requirements.lock.txt")
    if os.path.exists(lock):
        differing = [
            f"{package} {version} (lock {pin.removeprefix('==')})"
            for package, pin in requirements(lock).items()
            if (version := _installed(package)) and not _fits(version, pin)
        ]
        if differing:
            notes.append(f"not as in the lock: {', '.join(differing)}. Fix: {_INSTALL}")
    devices, problem = _devices()
    print(f"devices          {devices}")
    problems += [problem] if problem else []
    print(f"memory           {_memory()}")
    disk, problem = _work_dir(work_dir)
    print(f"work directory   {disk}")
    problems += [problem] if problem else []
    if imports:
        problem = _import_problem()
        print(f"imports          {'fail' if problem else 'agree'}")
        problems += [problem] if problem else []
    for note in notes:
        print(f"note: {note}")
    for problem in problems:
        print(f"problem: {problem}")
    print("no problems" if not problems else f"{len(problems)} to fix")
    return 1 if problems else 0
