"""What a compiled program moves: bytes of memory and of collectives, loops counted by their trips.

XLA's own `cost_analysis` takes a loop's body once, which for a model that scans its layers is a
small part of the truth. So the text of the optimised program (`compiled.as_text()`) is read here:
computations, what they call, how often a loop runs, and for every operation what it reads and
writes. The text is `hlo_text.py`'s. Knows nothing of models or chips.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping

from onesug_jax.train.collectives import KINDS, Collective, parse_groups
from onesug_jax.train.hlo_text import Instruction, read_computations

# What moves nothing by itself: names for what is there already, and bodies counted on their own.
_FREE = frozenset(
    "parameter constant get-tuple-element tuple bitcast while conditional call iota after-all "
    "partition-id replica-id opt-barrier domain".split()
)

# Of several slices a program is one slice's; what goes between them is handed to their hosts.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_TRIPS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled module: computations by name, and the one it starts with."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str

    @classmethod
    def parse(cls, text: str) -> Program:
        """Reads `compiled.as_text()`.

        Raises:
          ValueError: there is no entry computation in it.
        """
        return cls(*read_computations(text))

    def times(self, unknown_trips: int = 1) -> dict[str, float]:
        """How often every computation runs in one call of the program.

        `unknown_trips` is taken for loops whose end depends on data.
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
        """How often a `while` runs its body."""
        stated = _TRIPS.search(loop.rest)
        if stated:
            return int(stated[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        lines = list(self.computations.get(condition[1], ())) if condition else []
        for line in list(lines):
            for called in line.called():
                lines += self.computations.get(called, ())
        bounds = [
            int(found[1])
            for line in lines
            if line.opcode == "constant" and (found := re.match(r"(\d+)\)", line.rest))
        ]
        compares = [line for line in lines if line.opcode == "compare"]
        # The loops that a scan makes: counter < bound, and nothing else.
        if len(compares) == 1 and len(bounds) == 1 and "direction=LT" in compares[0].rest:
            return bounds[0]
        return unknown

    def memory_bytes(self, unknown_trips: int = 1) -> float:
        """Bytes read from and written to main memory, operation by operation.

        Every operation that is not part of a fusion reads its operands and writes its result. What
        a fusion only slices counts with the slice, what is updated in place with the update. A
        collective spread over fusions, each of which hands on its arrays, counts once.
        """
        times, inside = self.times(unknown_trips), self._fused()
        total = 0.0
        spread: dict[str, float] = {}
        for name, lines in self.computations.items():
            if not times.get(name):
                continue
            table = {line.name: line for line in lines}
            if name not in inside:
                total += times[name] * sum(self._moved(line, table) for line in lines)
                continue
            for line in lines:
                if line.opcode in KINDS:
                    size = times[name] * _collective_bytes(line, lines)
                    key = _channel(line) or f"{name}/{line.name}"
                    spread[key] = max(spread.get(key, 0.0), size)
        return total + sum(spread.values())

    def collectives(self, unknown_trips: int = 1) -> list[Collective]:
        """Every collective operation, with how often it runs."""
        times = self.times(unknown_trips)
        found: dict[str, Collective] = {}
        for name, lines in self.computations.items():
            for line in lines:
                kind, between = line.opcode.removesuffix("-start"), False
                if kind == "send" and (sent := _BETWEEN_SLICES.search(line.rest)):
                    kind, between = sent[1].lower().replace("_", "-"), True
                if kind not in KINDS or not times.get(name):
                    continue
                # Parts of one collective, spread over several fusions, share its channel.
                key = _channel(line) or f"{name}/{line.name}"
                arrays = line.arrays[-1:] if line.opcode.endswith("-start") else line.arrays
                if line.opcode == "collective-permute-start":  # operand, result, two contexts
                    arrays = line.arrays[1:2]
                arrays = line.arrays[:1] if between else arrays  # with a context and a token
                size = sum(array.bytes for array in arrays)
                one = Collective(kind, size, parse_groups(line.rest), times[name], between)
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):  # as TPUs do it
                    one = dataclasses.replace(one, kind="reduce-scatter", bytes=size / one.group)
                if key not in found or one.times > found[key].times:
                    found[key] = one
        return list(found.values())

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
        """Computations that are part of one operation: their insides move nothing of their own."""
        inside: set[str] = set()
        waiting = [
            called
            for lines in self.computations.values()
            for line in lines
            if line.opcode not in ("while", "conditional", "call")
            for called in line.called()
        ]
        while waiting:
            name = waiting.pop()
            if name in inside or name not in self.computations:
                continue
            inside.add(name)
            waiting += [c for line in self.computations[name] for c in line.called()]
        return inside

    def _moved(self, line: Instruction, table: Mapping[str, Instruction]) -> float:
        if line.opcode in _FREE or line.opcode.endswith("-done"):
            return 0.0
        given = [table[name].arrays if name in table else () for name in line.operands]
        read = [sum(a.bytes for a in arrays if a.main) for arrays in given]
        written = sum(a.bytes for a in line.arrays if a.main)
        body = self.computations.get(line.called()[0], ()) if line.opcode == "fusion" else ()
        if body:
            for place, size in self._inside(line).items():
                if place < len(read):
                    read[place] = min(read[place], size)
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
        """Parameters of a fusion that it does not read whole: place -> bytes read.

        Of some it takes slices only, into some it only writes, some it hands on or to a collective.
        """
        body = list(body)
        places = {
            p.name: int(re.split(r"\D", p.rest, maxsplit=1)[0])
            for p in body
            if p.opcode == "parameter"
        }
        parts: dict[int, float] = dict.fromkeys(places.values(), 0.0)
        whole: set[int] = set()
        for line in body:  # in the order of use
            for position, name in enumerate(line.operands):
                if name not in places:
                    continue
                if line.opcode in KINDS or line.root and line.opcode == "tuple":
                    continue
                if line.opcode == "bitcast":
                    places[line.name] = places[name]
                elif position == 0 and line.opcode in ("dynamic-slice", "slice", "gather"):
                    parts[places[name]] += sum(array.bytes for array in line.arrays)
                elif line.opcode == "fusion" and position in (inner := self._inside(line)):
                    parts[places[name]] += inner[position]
                elif position != 0 or line.opcode != "dynamic-update-slice":
                    whole.add(places[name])
        return {place: size for place, size in parts.items() if place not in whole}

    def _inside(self, fusion: Instruction) -> dict[int, float]:
        """`_read_in_part` of what a fusion runs."""
        return self._read_in_part(self.computations.get(fusion.called()[0], ()))


def _channel(line: Instruction) -> str:
    """What the parts of one collective have in common; "" where it has one part."""
    found = re.search(r"channel_id=(\d+)", line.rest)
    return found[1] if found else ""


def _collective_bytes(line: Instruction, body: Iterable[Instruction]) -> float:
    """What a collective in a fusion reads, and writes where its result is the fusion's."""
    given = [one for one in body if one.name in line.operands and one.opcode == "parameter"]
    arrays = [a for one in given for a in one.arrays]
    root = next(one for one in body if one.root)
    if root == line or root.opcode == "tuple" and line.name in root.operands:
        arrays += line.arrays
    return sum(a.bytes for a in arrays if a.main)


def _unchanged_bytes(body: Iterable[Instruction]) -> float:
    """Bytes of a fusion's results that it does not write: all but the updates written in, arrays
    that it hands on, a collective's.
    """
    body = list(body)
    inside = {line.name: line for line in body}

    def behind(name: str) -> Instruction | None:
        line = inside.get(name)
        while line is not None and line.opcode == "bitcast":
            line = inside.get(line.operands[0])
        return line

    root = next((line for line in body if line.root), body[-1])
    results = [behind(name) for name in root.operands] if root.opcode == "tuple" else [root]
    unchanged = 0.0
    for line in results:
        line = behind(line.name) if line is not None else None
        if line is not None and line.opcode == "dynamic-update-slice":
            update = inside.get(line.operands[1])
            size = sum(a.bytes for a in update.arrays) if update else 0.0
            unchanged += sum(a.bytes for a in line.arrays if a.main) - size
        elif line is not None and line.opcode in ("parameter", *KINDS):
            unchanged += sum(a.bytes for a in line.arrays if a.main)
    return unchanged
