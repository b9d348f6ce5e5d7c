"""Memory traffic and collectives of a compiled program, loops with their trip counts.

XLA's own `cost_analysis` counts a loop's body once, which is far too little for a model that scans
its layers. So this file analyses the optimised program (`hlo_text.py` parses it): calls, trip
counts, and the bytes that every operation reads and writes.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping

from onesug_jax.train.collectives import KINDS, Collective, parse_groups
from onesug_jax.train.hlo_text import Instruction, read_computations

# Operations without traffic of their own: other names of existing arrays, and calls, whose bodies
# are counted separately.
_FREE = frozenset(
    "parameter constant get-tuple-element tuple bitcast while conditional call iota after-all "
    "partition-id replica-id opt-barrier domain".split()
)

# With several slices, the program is that of one slice; its hosts transfer data between slices.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_TRIPS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled module: computations by name, and the name of the first."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str

    @classmethod
    def parse(cls, text: str) -> Program:
        """Parses `compiled.as_text()`.

        Raises:
          ValueError: it has no entry computation.
        """
        return cls(*read_computations(text))

    def times(self, unknown_trips: int = 1) -> dict[str, float]:
        """Runs of every computation in one call of the program.

        `unknown_trips` is the assumed trip count of loops whose end depends on data.
        """
        times: dict[str, float] = collections.defaultdict(float)
        order = self._callers_first()
        times[self.entry] = 1
        for name in order:
            for line in self.computations[name]:
                loops = self.trips(line, unknown_trips) if line.opcode == "while" else 1
                for called in line.called():
                    if called in self.computations:
                        times[called] += times[name] * loops
        return dict(times)

    def trips(self, loop: Instruction, unknown: int) -> int:
        """Trip count of a `while`."""
        match = _TRIPS.search(loop.rest)
        if match:
            return int(match[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        lines = list(self.computations.get(condition[1], ())) if condition else []
        for line in list(lines):
            for called in line.called():
                lines += self.computations.get(called, ())
        bounds = [
            int(number[1])
            for line in lines
            if line.opcode == "constant" and (number := re.match(r"(\d+)\)", line.rest))
        ]
        compares = [line for line in lines if line.opcode == "compare"]
        # The condition of a scan's loop is only: counter < bound.
        if len(compares) == 1 and len(bounds) == 1 and "direction=LT" in compares[0].rest:
            return bounds[0]
        return unknown

    def memory_bytes(self, unknown_trips: int = 1) -> float:
        """Bytes read from and written to main memory, summed over operations.

        Every operation outside a fusion reads its operands and writes its result. If a fusion only
        slices an operand, the slice counts; if it updates one in place, the update counts. A
        collective that is split over several fusions counts once.
        """
        times, fused = self.times(unknown_trips), self._fused()
        total = 0.0
        split: dict[str, float] = {}
        for name, lines in self.computations.items():
            if not times.get(name):
                continue
            table = {line.name: line for line in lines}
            if name not in fused:
                total += times[name] * sum(self._traffic(line, table) for line in lines)
                continue
            for line in lines:
                if line.opcode in KINDS:
                    size = times[name] * _collective_bytes(line, lines)
                    key = _channel(line) or f"{name}/{line.name}"
                    split[key] = max(split.get(key, 0.0), size)
        return total + sum(split.values())

    def collectives(self, unknown_trips: int = 1) -> list[Collective]:
        """Every collective operation, with the number of its runs."""
        times = self.times(unknown_trips)
        collectives: dict[str, Collective] = {}
        for name, lines in self.computations.items():
            for line in lines:
                kind, between = line.opcode.removesuffix("-start"), False
                if kind == "send" and (sent := _BETWEEN_SLICES.search(line.rest)):
                    kind, between = sent[1].lower().replace("_", "-"), True
                if kind not in KINDS or not times.get(name):
                    continue
                # The parts of a collective that is split over several fusions share its channel.
                key = _channel(line) or f"{name}/{line.name}"
                arrays = line.arrays[-1:] if line.opcode.endswith("-start") else line.arrays
                if line.opcode == "collective-permute-start":  # operand, result, two contexts
                    arrays = line.arrays[1:2]
                arrays = line.arrays[:1] if between else arrays  # with a context and a token
                size = sum(array.bytes for array in arrays)
                new = Collective(kind, size, parse_groups(line.rest), times[name], between)
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):  # TPUs' form
                    new = dataclasses.replace(new, kind="reduce-scatter", bytes=size / new.group)
                if key not in collectives or new.times > collectives[key].times:
                    collectives[key] = new
        return list(collectives.values())

    def _callers_first(self) -> list[str]:
        order, seen = [], set()

        def visit(name: str) -> None:
            if name in seen or name not in self.computations:
                return
            seen.add(name)
            for line in self.computations[name]:
                for called in line.called():
                    visit(called)
            order.append(name)

        visit(self.entry)
        return order[::-1]

    def _fused(self) -> set[str]:
        """Computations inside one operation, whose lines have no traffic of their own."""
        fused: set[str] = set()
        waiting = [
            called
            for lines in self.computations.values()
            for line in lines
            if line.opcode not in ("while", "conditional", "call")
            for called in line.called()
        ]
        while waiting:
            name = waiting.pop()
            if name in fused or name not in self.computations:
                continue
            fused.add(name)
            waiting += [c for line in self.computations[name] for c in line.called()]
        return fused

    def _traffic(self, line: Instruction, table: Mapping[str, Instruction]) -> float:
        """Bytes that one operation reads and writes; `table` is its computation, by name."""
        if line.opcode in _FREE or line.opcode.endswith("-done"):
            return 0.0
        operands = [table[name].arrays if name in table else () for name in line.operands]
        read = [sum(a.bytes for a in arrays if a.main) for arrays in operands]
        written = sum(a.bytes for a in line.arrays if a.main)
        body = self.computations.get(line.called()[0], ()) if line.opcode == "fusion" else ()
        if body:
            for position, size in self._read_in_part(body).items():
                if position < len(read):
                    read[position] = min(read[position], size)
            written -= _unchanged_bytes(body)
        elif line.opcode in ("dynamic-slice", "slice", "gather"):
            read = [written]
        elif line.opcode in ("dynamic-update-slice", "scatter"):
            update = read[1] if line.opcode == "dynamic-update-slice" else read[-1]
            read, written = [update], update
        elif line.opcode == "slice-start":  # its result: the operand, the slice, a context
            read = [line.arrays[1].bytes]
            written = line.arrays[1].bytes * line.arrays[1].main
        elif line.opcode == "copy-start":  # the copy, the operand, a context
            written = line.arrays[0].bytes * line.arrays[0].main
        elif line.opcode.endswith("-start"):  # its result repeats the operands
            written /= 2
        return sum(read) + max(written, 0.0)

    def _read_in_part(self, body: Iterable[Instruction]) -> dict[int, float]:
        """Parameters that a fusion reads only in part: number of the parameter -> bytes read.

        The fusion slices them, writes into them, passes them on, or gives them to a collective.
        """
        body = list(body)
        numbers = {
            p.name: int(re.split(r"\D", p.rest, maxsplit=1)[0])
            for p in body
            if p.opcode == "parameter"
        }
        parts: dict[int, float] = dict.fromkeys(numbers.values(), 0.0)
        whole: set[int] = set()
        for line in body:  # in the order of use
            for position, name in enumerate(line.operands):
                if name not in numbers:
                    continue
                if line.opcode in KINDS or line.root and line.opcode == "tuple":
                    continue
                if line.opcode == "bitcast":
                    numbers[line.name] = numbers[name]
                elif position == 0 and line.opcode in ("dynamic-slice", "slice", "gather"):
                    parts[numbers[name]] += sum(array.bytes for array in line.arrays)
                elif line.opcode == "fusion" and position in (
                    inner := self._read_in_part(self.computations.get(line.called()[0], ()))
                ):
                    parts[numbers[name]] += inner[position]
                elif position != 0 or line.opcode != "dynamic-update-slice":
                    whole.add(numbers[name])
        return {number: size for number, size in parts.items() if number not in whole}


def _channel(line: Instruction) -> str:
    """The channel that the parts of one collective share; "" if it has none."""
    match = re.search(r"channel_id=(\d+)", line.rest)
    return match[1] if match else ""


def _collective_bytes(line: Instruction, body: Iterable[Instruction]) -> float:
    """Bytes that a collective in a fusion reads, and writes if its result is the fusion's."""
    inputs = [x for x in body if x.name in line.operands and x.opcode == "parameter"]
    arrays = [a for x in inputs for a in x.arrays]
    root = next(x for x in body if x.root)
    if root == line or root.opcode == "tuple" and line.name in root.operands:
        arrays += line.arrays
    return sum(a.bytes for a in arrays if a.main)


def _unchanged_bytes(body: Iterable[Instruction]) -> float:
    """Bytes of a fusion's results that it does not write: arrays updated in place without the
    update, arrays passed on, results of collectives.
    """
    body = list(body)
    table = {line.name: line for line in body}

    def without_bitcasts(name: str) -> Instruction | None:
        line = table.get(name)
        while line is not None and line.opcode == "bitcast":
            line = table.get(line.operands[0])
        return line

    root = next((line for line in body if line.root), body[-1])
    names = root.operands if root.opcode == "tuple" else [root.name]
    unchanged = 0.0
    for line in map(without_bitcasts, names):
        if line is not None and line.opcode == "dynamic-update-slice":
            update = table.get(line.operands[1])
            size = sum(a.bytes for a in update.arrays) if update else 0.0
            unchanged += sum(a.bytes for a in line.arrays if a.main) - size
        elif line is not None and line.opcode in ("parameter", *KINDS):
            unchanged += sum(a.bytes for a in line.arrays if a.main)
    return unchanged
