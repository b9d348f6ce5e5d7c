"""Prints the table of sizes by TPU slices: does a pretrain step fit, how long may it take.

python launch/compile_table.py [--sizes small,base] [--slices v5e:4x4,v5p:4x4x4] [--per_chip 32]

Every cell is `python -m onesug_jax.main compile --json` in a process of its own, with parameters
cut over as many chips as the size needs; a cell that does not fit says what would. Needs the
package libtpu and no TPU: one to thirteen minutes a cell on two cores that other work shared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIZES = {"small": 1, "base": 1, "large": 8, "xl": 16, "xxl": 64}  # name: chips that share one copy
SLICES = ("v5e:4x4", "v5e:8x8", "v5e:16x16", "v5p:4x4x4", "v5p:8x8x8", "v6e:16x16")


def cell(size: str, topology: str, per_chip: int) -> str:
    """One cell of the table, in Markdown."""
    chips = 1
    for side in topology.split(":")[1].split("x"):
        chips *= int(side)
    fsdp = min(SIZES[size], chips)
    command = [
        sys.executable,
        *("-m", "onesug_jax.main", "compile", "--json", "--only=pretrain"),
        *(f"--topology={topology}", f"--gin.MODEL={size}", f"--gin.BATCH_SIZE={per_chip * chips}"),
        *("--gin.make_mesh.data=-1", f"--gin.make_mesh.fsdp={fsdp}"),
    ]
    path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode not in (0, 2) or not done.stdout.startswith("["):
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    (found,) = json.loads(done.stdout)
    if not found["fits"]:
        return f"{found['needed'] / 2**30:.0f} GiB: no ({found['change']})"
    low, high = (f"{1e3 * seconds:.0f}" for seconds in found["estimate_s"])
    slow, fast = (f"{rate / 1e6:.1f}" for rate in found["tokens_per_s"])
    least, most = (f"{100 * share:.0f}" for share in found["mfu"])
    return (
        f"{found['needed'] / 2**30:.1f} GiB, between {low} and {high} ms, {slow} and {fast} M "
        f"tokens/s, MFU {least} and {most} % ({found['bound_by']})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--slices", default=",".join(SLICES))
    parser.add_argument("--per_chip", type=int, default=32, help="examples a chip and step")
    options = parser.parse_args()
    sizes, slices = options.sizes.split(","), options.slices.split(",")
    unknown = [size for size in sizes if size not in SIZES]
    if unknown:
        parser.error(f"--sizes: expected some of {', '.join(SIZES)}, found {unknown[0]}")
    print(f"| {options.per_chip} examples a chip | {' | '.join(slices)} |", flush=True)
    print("|---" * (len(slices) + 1) + "|", flush=True)
    for size in sizes:
        print(f"| {size}", end="", flush=True)
        for topology in slices:
            print(f" | {cell(size, topology, options.per_chip)}", end="", flush=True)
        print(" |", flush=True)


if __name__ == "__main__":
    main()
