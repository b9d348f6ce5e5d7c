"""Meshes of all TPU slices: each process reads the rows that its devices hold.

The TPU compiler describes the coordinates and hosts of real slices; nothing is compiled. Simulated
devices test the same without the compiler.
"""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.train import mesh as meshes

PLANE = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x4x12", "4x8x8", "4x8x12", "8x8x8")
SLICES = [
    *(f"{chip}:{shape}" for chip in ("v5e", "v6e") for shape in PLANE),
    *(f"{chip}:{shape}" for chip in ("v4", "v5p") for shape in CUBE),
]
SEVERAL = {"v5e:4x4": 2, "v5e:16x16": 2, "v6e:8x8": 8, "v5p:4x4x4": 4, "v4:2x2x2": 3}

FOLDER = os.environ.get("ONESUG_LIBTPU") or os.path.join(sys.prefix, "libtpu")
NEEDS_COMPILER = pytest.mark.skipif(
    not os.path.isdir(os.path.join(FOLDER, "libtpu")) and not importlib.util.find_spec("libtpu"),
    reason="needs the TPU compiler: pip install --target F 'libtpu==0.0.42.*'; ONESUG_LIBTPU=F",
)


def splits(chips):
    """Sizes of fsdp and tensor to test on one slice of this many chips."""
    sizes = sorted({1, 4, 16, chips})
    return [(f, t) for f in sizes for t in (1, 2, 8) if chips % (f * t) == 0]


def check_split(devices, fsdp, tensor, **axes) -> bool:
    """Compares every process's rows with the mesh; returns whether all are contiguous."""
    mesh = meshes.make_mesh(fsdp=fsdp, tensor=tensor, devices=devices, **axes)
    assert mesh.shape["fsdp"] == fsdp and mesh.shape["tensor"] == tensor
    assert {id(d) for d in mesh.devices.flat} == {id(d) for d in devices}
    parts, rows = len(devices) // tensor, 3
    by_part = mesh.devices.reshape(parts, tensor)
    expected = {}
    for part in range(parts):
        for device in by_part[part]:
            own = expected.setdefault(device.process_index, set())
            own |= {part * rows + row for row in range(rows)}
    contiguous, copies = True, np.zeros(parts * rows, int)
    for process, own in expected.items():
        shard = meshes.process_batch_shard(mesh, parts * rows, process)
        assert shard.tolist() == sorted(own)
        contiguous &= bool((np.diff(shard) == 1).all())
        copies[shard] += 1
    assert copies.min() >= 1  # together they read the whole batch
    assert copies.max() <= tensor  # no row twice, unless `tensor` extends over processes
    return contiguous


def check_topology(name: str, slices: int) -> dict:
    """Tests all splits of one topology; returns counts as JSON values."""
    from onesug_jax.train.chips import Topology

    topology = Topology.parse(name)
    devices = topology.devices(slices)
    assert len(devices) == topology.chips * slices
    contiguous = [check_split(devices, *split) for split in splits(topology.chips)]
    if slices == 1 and topology.chips >= 8:
        check_split(devices, 2, 2, replica=2)
    if slices > 1:
        mesh = meshes.make_mesh(devices=devices)
        for number, replica in enumerate(mesh.devices):
            assert {device.slice_index for device in replica.flat} == {number}
        with pytest.raises(UserError, match=f"replica must be a multiple of {slices}"):
            meshes.make_mesh(replica=1, devices=devices)
    return {"splits": len(contiguous), "contiguous": sum(contiguous)}


@pytest.fixture(scope="module")
def described(project_root):
    """Topology -> the result of `check_topology`, in one process: jax loads the compiler once."""
    code = (
        "import json\nfrom tests.train import test_topologies as t\nresults = {}\n"
        "for name, slices in [*((n, 1) for n in t.SLICES), *t.SEVERAL.items()]:\n"
        "    try:\n        results[f'{name} {slices}'] = t.check_topology(name, slices)\n"
        "    except Exception as error:\n"
        "        results[f'{name} {slices}'] = f'{type(error).__name__}: {error}'\n"
        "print(json.dumps(results))"
    )
    paths = [str(project_root), FOLDER]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
@NEEDS_COMPILER
@pytest.mark.parametrize("name", SLICES)
def test_every_slice_has_a_mesh(described, name):
    result = described[f"{name} 1"]
    assert isinstance(result, dict), result
    assert result["splits"] >= 3


@pytest.mark.long
@NEEDS_COMPILER
@pytest.mark.parametrize("name", SEVERAL)
def test_several_slices_are_replicas(described, name):
    result = described[f"{name} {SEVERAL[name]}"]
    assert isinstance(result, dict), result


@NEEDS_COMPILER
def test_rows_of_a_real_host_are_not_contiguous(described):
    """So the loaders must support it."""
    assert described["v5e:16x16 1"]["contiguous"] < described["v5e:16x16 1"]["splits"]


@dataclasses.dataclass(frozen=True)
class Device:
    """The attributes of a TPU chip that a mesh reads."""

    id: int
    coords: tuple[int, ...]
    process_index: int
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5"
    core_on_chip: int = 0


def simulated(shape, hosts, slices=1):
    """Chips on tori, assigned to the hosts of each slice at random."""
    chips, devices = math.prod(shape), []
    for number in range(slices):
        order = np.random.default_rng(number).permutation(chips)
        for i, coords in enumerate(np.ndindex(*shape)):
            host = number * hosts + int(order[i]) % hosts
            devices.append(Device(number * chips + i, coords, host, number))
    return devices


@pytest.mark.parametrize(("shape", "hosts"), [((2, 2, 1), 2), ((4, 4, 4), 16), ((4, 4, 8), 5)])
def test_rows_follow_the_devices_at_any_position(shape, hosts):
    devices = simulated(shape, hosts)
    for fsdp, tensor in splits(len(devices)):
        check_split(devices, fsdp, tensor)
    check_split(devices, 1, 2, replica=2)


def test_slices_are_replicas_and_no_other_axis_extends_over_them():
    devices = simulated((2, 2, 2), 2, slices=3)
    for fsdp, tensor in splits(8):
        check_split(devices, fsdp, tensor)
    check_split(devices, 2, 2, replica=6)
    assert meshes.make_mesh(devices=devices).shape["replica"] == 3
    with pytest.raises(UserError, match="devices are 3 slices, so replica must be a multiple of 3"):
        meshes.make_mesh(replica=2, devices=devices)
