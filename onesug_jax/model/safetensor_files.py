"""Reads and writes parameters in safetensors files.

`hf.py` has the tensor names of T5, `text_encoder/bert_files.py` those of BERT. Files are float32,
float16 or bfloat16; parameters are float32. PyTorch is not needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from onesug_jax.errors import UserError
from onesug_jax.model.hf_config import CONFIG, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One parameter: the names of its tensors, their shape in the file, and our shape."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    ours: tuple[int, ...]  # of one layer
    stacked: bool = False
    transposed: bool = False

    def read(self, values: list[np.ndarray]) -> np.ndarray:
        """Our array from the file's, float32."""
        parts = [
            (value.T if self.transposed else value).astype(np.float32).reshape(self.ours)
            for value in values
        ]
        return np.stack(parts) if self.stacked else np.ascontiguousarray(parts[0])

    def write(self, value: np.ndarray) -> list[np.ndarray]:
        """The file's arrays from ours, one per name."""
        parts = list(value) if self.stacked else [value]
        flat = self.shape[::-1] if self.transposed else self.shape
        parts = [part.reshape(flat) for part in parts]
        return [np.ascontiguousarray(part.T if self.transposed else part) for part in parts]


Tensors = Mapping[tuple[str, ...], Tensor]  # by the path of our parameter


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor of an open safetensors file."""

    path: str
    name: str
    handle: Any

    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.handle.get_slice(self.name).get_shape())

    def kind(self) -> str:
        """Its dtype, as safetensors names it."""
        return self.handle.get_slice(self.name).get_dtype()

    def value(self) -> np.ndarray:
        """Its array."""
        return self.handle.get_tensor(self.name)


@contextlib.contextmanager
def opened(folder: str) -> Iterator[tuple[dict[str, Stored], str]]:
    """The tensors of a folder by name, and the path of their file or index for messages.

    Raises:
      UserError: there are no weights, a shard is missing, or a file is no safetensors file.
    """
    index, single = os.path.join(folder, INDEX), os.path.join(folder, WEIGHTS)
    weight_map: dict[str, str] = {}
    if os.path.isfile(single):
        source, paths = single, [single]
    elif os.path.isfile(index):
        source = index
        weight_map = read_json(index).get("weight_map") or {}
        paths = [os.path.join(folder, name) for name in sorted(set(weight_map.values()))]
        if not paths:
            raise UserError(f"{index}: expected a weight_map with files, found none; copy it again")
    else:
        raise UserError(
            f"{single}: expected the model's weights, found no such file; use a folder with "
            f"{CONFIG} and {WEIGHTS}, or {INDEX} and its shards (transformers converts a "
            "pytorch_model.bin: from_pretrained, then save_pretrained)."
        )
    stored: dict[str, Stored] = {}
    with contextlib.ExitStack() as stack:
        path = source
        try:
            for path in paths:
                if not os.path.isfile(path):
                    raise UserError(f"{path}: {INDEX} lists it, but the file is missing.")
                handle = stack.enter_context(safe_open(path, framework="numpy"))
                stored |= {name: Stored(path, name, handle) for name in handle.keys()}
            shards = {name: os.path.basename(tensor.path) for name, tensor in stored.items()}
            wrong = sorted(name for name, file in weight_map.items() if file != shards.get(name))
            if wrong:
                raise UserError(
                    f"{index}: {wrong[0]} is expected in {weight_map[wrong[0]]}, but is not there "
                    f"({len(wrong)} such tensors); the files are not of one model."
                )
            yield stored, source
        except SafetensorError as error:
            raise UserError(
                f"{path}: expected a safetensors file; reading it failed: {error}. Copy it again."
            ) from error


def read_tensors(
    source: str, stored: Mapping[str, Stored], expected: Tensors, ignored: tuple[str, ...] = ()
) -> dict[tuple[str, ...], np.ndarray]:
    """The expected parameters, float32.

    Raises:
      UserError: names the missing and surplus tensors except `ignored`, or the first tensor of
        another shape.
    """
    names = [name for tensor in expected.values() for name in tensor.names]
    missing = [name for name in names if name not in stored]
    surplus = sorted(set(stored) - {*names, *ignored})
    problems = []
    for problem, wrong in (("missing", missing), ("too many", surplus)):
        if wrong:
            rest = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            problems.append(f"{problem}: {', '.join(wrong[:3])}{rest}")
    if problems:
        raise UserError(
            f"{source}: the tensors do not fit {CONFIG} beside it: {'; '.join(problems)}. The two "
            "are not of one model."
        )
    for tensor in expected.values():
        for name in tensor.names:
            shape = stored[name].shape()
            if shape != tensor.shape:
                raise UserError(
                    f"{stored[name].path}: tensor {name} is {list(shape)}, but {CONFIG} beside it "
                    f"requires {list(tensor.shape)}; the two files are not of one model."
                )
    return {
        path: tensor.read([stored[name].value() for name in tensor.names])
        for path, tensor in expected.items()
    }


def write_tensors(path: str, layout: Tensors, flat: Mapping[tuple[str, ...], np.ndarray]) -> None:
    """Writes parameters, by path, to one safetensors file."""
    arrays: dict[str, np.ndarray] = {}
    for key, tensor in layout.items():
        arrays |= dict(zip(tensor.names, tensor.write(flat[key]), strict=True))
    save_file(arrays, path, metadata={"format": "pt"})
