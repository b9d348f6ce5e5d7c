"""Compiles a step for chips that are not attached, and reports its memory and possible speed.

The step is the function that training jits, the devices are descriptions of a topology, and the
compiler is the chips' own. The result is bytes per chip, FLOPs, collectives, and times:

    compute = FLOPs per chip / peak    memory = HBM bytes / bandwidth      links = bytes sent / link
    network = bytes sent to other slices / a chip's share of the network between them

`forecast.py` derives a bound, the sum without overlap, and an estimate. FLOPs are counted on the
jaxpr (`flops.py`), bytes on the compiled program (`hlo.py`), loops with their trip counts. MFU
counts three forward passes, without recomputation.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from onesug_jax.train.chips import Topology
from onesug_jax.train.flops import flops
from onesug_jax.train.forecast import Forecast
from onesug_jax.train.hlo import Program

_UNITS = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The cost of one compiled step; bytes and FLOPs are per chip.

    Attributes:
      step: its name; topology, chips, mesh: the target of the compilation.
      fits: whether it fits the memory; needed, memory: required and available bytes.
      arguments, outputs, temporaries, code: parts of `needed`; outputs that reuse the memory of
        arguments are excluded.
      flops: with recomputation; model_flops: without.
      memory_bytes: read from and written to memory.
      collectives: "kind along axes of the mesh" -> runs, bytes of results, bytes sent over links
        and over the network between slices.
      compute_s, memory_s, links_s, network_s: the time of each one alone.
      tokens, examples: of a step, over all chips; peak: FLOP/s of a chip.
      compile_s: compilation time on this host.
    """

    step: str
    topology: str
    chips: int
    mesh: dict[str, int]
    fits: bool
    needed: float
    memory: float
    arguments: float = 0.0
    outputs: float = 0.0
    temporaries: float = 0.0
    code: float = 0.0
    flops: float = 0.0
    model_flops: float = 0.0
    memory_bytes: float = 0.0
    collectives: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    compute_s: float = 0.0
    memory_s: float = 0.0
    links_s: float = 0.0
    network_s: float = 0.0
    tokens: int = 0
    examples: int = 0
    peak: float = 1.0
    compile_s: float = 0.0

    @property
    def forecast(self) -> Forecast:
        """The expected time of a step."""
        return Forecast(self.compute_s, self.memory_s, self.links_s, self.network_s)

    def mfu(self, seconds: float) -> float:
        """Model FLOPs utilisation if a step takes this time."""
        return self.model_flops / self.peak / seconds

    def as_json(self) -> dict[str, Any]:
        """All fields and the forecast: seconds, and MFU and rates at both ends of the estimate."""
        time = self.forecast
        out = {**dataclasses.asdict(self), "bound_s": time.bound, "bound_by": time.largest}
        out |= {"sum_s": time.sum, "estimate_s": [time.fast, time.slow]}
        if self.fits:
            out["mfu"] = [self.mfu(time.slow), self.mfu(time.fast)]
            out["tokens_per_s"] = [self.tokens / time.slow, self.tokens / time.fast]
        return out


@dataclasses.dataclass(frozen=True)
class Step:
    """One jitted function and abstract arguments to compile it with.

    Attributes:
      name: for reports.
      jitted: the result of `jax.jit`; arguments: `ShapeDtypeStruct`s with their shardings.
      mesh: the mesh of the shardings.
      model_flops: the model's FLOPs of one call, over all chips.
      tokens, examples: in one call, over all chips.
      unknown_trips: assumed trip count of loops whose end depends on data.
    """

    name: str
    jitted: Any
    arguments: Sequence[Any]
    mesh: jax.sharding.Mesh
    model_flops: float
    tokens: int
    examples: int
    unknown_trips: int = 1


def analyse(step: Step, topology: Topology) -> Analysis:
    """Compiles a step and computes its cost; a step that does not fit is a result, not an error."""
    chips = step.mesh.size
    target: dict[str, Any] = {
        "step": step.name,
        "topology": topology.name,
        "chips": chips,
        "mesh": dict(step.mesh.shape),
        "memory": topology.chip.memory,
    }
    start = time.monotonic()
    traced = step.jitted.trace(*step.arguments)
    chip_flops = flops(traced.jaxpr, step.unknown_trips) / chips
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _memory_needed(str(error))
        if needed is None:
            raise
        return Analysis(**target, fits=False, needed=needed, flops=chip_flops)
    seconds = time.monotonic() - start
    sizes = compiled.memory_analysis()
    outputs = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    parts: dict[str, Any] = {
        "arguments": float(sizes.argument_size_in_bytes),
        "outputs": float(outputs),
        "temporaries": float(sizes.temp_size_in_bytes),
        "code": float(sizes.generated_code_size_in_bytes),
    }
    needed = sum(parts.values())
    program = Program.parse(compiled.as_text())
    memory_bytes = program.memory_bytes(step.unknown_trips)
    collectives: dict[str, dict[str, float]] = {}
    for collective in program.collectives(step.unknown_trips):
        name = " ".join([collective.kind, "x".join(collective.axes(step.mesh.shape))]).strip()
        row = collectives.setdefault(
            name, dict.fromkeys(("runs", "bytes", "links", "network"), 0.0)
        )
        links, network = collective.sent(topology.chips, chips // topology.chips)
        row["runs"] += collective.times
        row["bytes"] += collective.bytes * collective.times
        row["links"] += links
        row["network"] += network
    chip = topology.chip
    links, network = (sum(x[to] for x in collectives.values()) for to in ("links", "network"))
    return Analysis(
        **target,
        **parts,
        fits=needed <= chip.memory,
        needed=needed,
        flops=chip_flops,
        model_flops=step.model_flops / chips,
        memory_bytes=memory_bytes,
        collectives=collectives,
        compute_s=chip_flops / chip.flops,
        memory_s=memory_bytes / chip.memory_bytes_per_s,
        links_s=links / chip.link_bytes_per_s,
        network_s=network / chip.network_bytes_per_s,
        tokens=step.tokens,
        examples=step.examples,
        peak=chip.flops,
        compile_s=seconds,
    )


def _memory_needed(error: str) -> float | None:
    """Bytes of memory in the compiler's message; None if it failed for another reason."""
    if "RESOURCE_EXHAUSTED" not in error and "Ran out of memory" not in error:
        return None
    match = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", error)
    return float(match[1]) * _UNITS[match[2]] if match else float("inf")


def format_analysis(a: Analysis) -> str:
    """The analysis as text for the console."""
    mesh = " x ".join(f"{name}={size}" for name, size in a.mesh.items())
    head = f"{a.step} on {a.topology} ({a.chips} chip{'s' * (a.chips > 1)}; {mesh})"
    gib = 2.0**30
    memory = f"{a.needed / gib:.2f} of {a.memory / gib:.0f} GiB a chip"
    if not a.fits:
        return f"{head}\n  DOES NOT FIT: {memory}"
    lines = [
        head,
        f"  memory       {memory}: arguments {a.arguments / gib:.2f}, temporaries "
        f"{a.temporaries / gib:.2f}, outputs {a.outputs / gib:.2f}, code {a.code / gib:.2f}",
        f"  FLOPs        {a.flops / 1e9:,.1f} G a chip ({a.model_flops / 1e9:,.1f} G without "
        "recomputation)",
        f"  HBM traffic  {a.memory_bytes / gib:.2f} GiB a chip",
    ]
    for name, sums in sorted(a.collectives.items(), key=lambda row: -row[1]["bytes"]):
        between = f", {sums['network'] / 2**20:,.1f} between slices" if sums["network"] else ""
        lines.append(
            f"  {name:<28} {sums['runs']:>5,.0f} runs  {sums['bytes'] / 2**20:>9,.1f} MiB; sent "
            f"{sums['links'] / 2**20:,.1f} MiB{between}"
        )
    if not a.collectives:
        lines.append("  no collectives")
    time = a.forecast
    network = f", network between slices {1e3 * a.network_s:.2f} ms" if a.network_s else ""
    lines += [
        f"  by itself    compute {1e3 * a.compute_s:.2f} ms, memory {1e3 * a.memory_s:.2f} ms, "
        f"links {1e3 * a.links_s:.2f} ms{network}",
        f"  bound        {1e3 * time.bound:.2f} ms a step ({time.largest}), if all the rest hides "
        f"behind it; {1e3 * time.sum:.2f} ms if nothing overlaps",
        f"  estimate     between {1e3 * time.fast:.1f} and {1e3 * time.slow:.1f} ms a step, "
        f"{a.tokens / time.slow:,.0f} to {a.tokens / time.fast:,.0f} tokens/s, MFU "
        f"{100 * a.mfu(time.slow):.0f} to {100 * a.mfu(time.fast):.0f} %",
        f"  compiled in  {a.compile_s:.0f} s",
    ]
    return "\n".join(lines)
