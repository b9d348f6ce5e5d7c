"""Parses the text of a compiled program (`compiled.as_text()`) into computations and operations.

For `hlo.py`: names, shapes with their memory space, operands, and the unparsed rest of each line.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable

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

_HEADER = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s*\(.*\)\s*->.*\{\s*$")
_LINE = re.compile(r"^\s+(ROOT\s+)?%?([\w.\-]+)\s*=\s*")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape: element bytes, dimensions, and whether it is in main memory."""

    width: float
    dims: tuple[int, ...]
    main: bool = True

    @property
    def bytes(self) -> float:
        """Its size without padding."""
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
        """Names of the computations that it calls."""
        names = _CALLED.findall(self.rest)
        for group in _BRANCHES.findall(self.rest):
            names += [name.strip().lstrip("%") for name in group.split(",") if name.strip()]
        return names


def read_computations(text: str) -> tuple[dict[str, tuple[Instruction, ...]], str]:
    """Computations by name, and the name of the entry computation.

    Raises:
      ValueError: the text has no entry computation.
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
        elif name and (instruction := _instruction(line)):
            lines.append(instruction)
    if not entry:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY")
    return computations, entry


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
    """The end of the shape at the start of `text`: a tuple in brackets, or one array."""
    return _closing(text, 0) if text.startswith("(") else text.index(" ")


def _closing(text: str, depth: int) -> int:
    """The position after the bracket that closes all open ones; `depth` are open before `text`."""
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return position + 1
    return len(text)


def _arrays(shape: str) -> Iterable[Array]:
    for kind, dims, layout in _ARRAY.findall(re.sub(r"/\*.*?\*/", "", shape)):
        if kind in _BYTES:
            sizes = tuple(int(d) for d in dims.split(",") if d)
            # S(n) in a layout is another memory than the main one, such as a TPU's on-chip VMEM.
            yield Array(_BYTES[kind], sizes, not re.search(r"S\([1-9]", layout))
