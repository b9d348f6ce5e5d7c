"""What a compiled program moves: bytes of memory and of collectives, loops counted by their trips.

XLA's own `cost_analysis` takes a loop's body once, which for a model that scans its layers is a
small part of the truth. So the text of the optimised program (`compiled.as_text()`) is read here:
computations, what they call, how often a loop runs, and for every operation what it reads and
writes. Knows HLO's text and nothing of models or chips.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

from onesug_jax.train.collectives import KINDS, Collective, parse_groups

_BYTES = {
    "pred": 1,
    "s4": 0.5,
    "u4": 0.5,
    "s8": 1,
    "u8": 1,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "s16": 2,
    "u16": 2,
    "f16": 2,
    "bf16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
    "c128": 16,
}
# What moves nothing by itself: names for what is there already, and bodies counted on their own.
_FREE = frozenset(
    "parameter constant get-tuple-element tuple bitcast while conditional call iota after-all "
    "partition-id replica-id opt-barrier domain".split()
)

_HEADER = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s*\(.*\)\s*->.*\{\s*$")
_LINE = re.compile(r"^\s+(ROOT\s+)?%?([\w.\-]+)\s*=\s*")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
# Of several slices a program is one slice's; what goes between them is handed to their hosts.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_TRIPS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape: element bytes, dimensions, and whether it lies in the main memory."""

    width: float
    dims: tuple[int, ...]
    main: bool = True

    @property
    def bytes(self) -> float:
        """Its size, without padding."""
        return self.width * math.prod(self.dims)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool = False

    def called(self) -> list[str]:
        """Names of the computations it runs."""
        names = _CALLED.findall(self.rest)
        for group in _BRANCHES.findall(self.rest):
            names += [name.strip().lstrip("%") for name in group.split(",") if name.strip()]
        return names


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
        computations: dict[str, tuple[Instruction, ...]] = {}
        entry, name = "", ""
        lines: list[Instruction] = []
        for line in text.splitlines():
            header = _HEADER.match(line) if not line.startswith(" ") else None
            if header:
                name, lines = header[2], []
                entry = name if header[1] else entry
            elif line.startswith("}") and name:
                computations[name], name = tuple(lines), ""
            elif name and (found := _instruction(line)):
                lines.append(found)
        if not entry:
            raise ValueError("this is not the text of a compiled program: it has no ENTRY")
        return cls(computations, entry)

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
        a fusion only slices counts with the slice, what is updated in place with the update.
        """
        times, inside = self.times(unknown_trips), self._fused()
        total = 0.0
        for name, lines in self.computations.items():
            if name in inside or not times.get(name):
                continue
            table = {line.name: line for line in lines}
            total += times[name] * sum(self._moved(line, table) for line in lines)
        return total

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
                channel = re.search(r"channel_id=(\d+)", line.rest)
                key = channel[1] if channel else f"{name}/{line.name}"
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

        Of some it takes slices only, into some it only writes.
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


def _instruction(line: str) -> Instruction | None:
    start = _LINE.match(line)
    if not start:
        return None
    rest = line[start.end() :]
    end = _shape_end(rest)
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[: _closing(rest, 1) - 1]))
    return Instruction(
        start[2], tuple(_arrays(shape)), opcode.strip(), operands, rest, bool(start[1])
    )


def _shape_end(text: str) -> int:
    """Where the shape that `text` starts with ends: a tuple in brackets, or one array."""
    return _closing(text, 0) if text.startswith("(") else text.index(" ")


def _closing(text: str, depth: int) -> int:
    """Just after the bracket that closes all those open, `depth` of them before `text`."""
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return place + 1
    return len(text)


def _arrays(shape: str) -> Iterable[Array]:
    for kind, dims, layout in _ARRAY.findall(re.sub(r"/\*.*?\*/", "", shape)):
        if kind in _BYTES:
            sizes = tuple(int(d) for d in dims.split(",") if d)
            # S(n) in a layout: another memory than the main one, such as a TPU's on-chip VMEM.
            yield Array(_BYTES[kind], sizes, not re.search(r"S\([1-9]", layout))


def _unchanged_bytes(body: Iterable[Instruction]) -> float:
    """Bytes of a fusion's results that it leaves as they were: all but the updates written in."""
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
    return unchanged
