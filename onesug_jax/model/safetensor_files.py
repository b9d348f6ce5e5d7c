"""Parameters in safetensors files: which tensors each comes from, and folders of them.

`hf.py` says where a T5's parameters stand, `text_encoder/bert_files.py` where a BERT's do. A file
holds float32, float16 or bfloat16; parameters are float32. PyTorch is not needed.
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
    """One parameter: the tensors it is stacked from, their shape in the file, and ours."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    ours: tuple[int, ...]  # of one layer
    stacked: bool = False
    transposed: bool = False

    def read(self, values: list[np.ndarray]) -> np.ndarray:
        """The file's arrays as ours, float32."""
        parts = [
            (value.T if self.transposed else value).astype(np.float32).reshape(self.ours)
            for value in values
        ]
        return np.stack(parts) if self.stacked else np.ascontiguousarray(parts[0])

    def write(self, value: np.ndarray) -> list[np.ndarray]:
        """Our array as the file's, one a name."""
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
        """Its number type, as safetensors names it."""
        return self.handle.get_slice(self.name).get_dtype()

    def value(self) -> np.ndarray:
        """Its numbers."""
        return self.handle.get_tensor(self.name)


@contextlib.contextmanager
def opened(folder: str) -> Iterator[tuple[dict[str, Stored], str]]:
    """The tensors of a folder by name, and what to call their file or files in a message.

    Raises:
      UserError: there are no weights, a shard is missing, or a file is no safetensors file.
    """
    index, whole = os.path.join(folder, INDEX), os.path.join(folder, WEIGHTS)
    stated: dict[str, str] = {}
    if os.path.isfile(whole):
        place, paths = whole, [whole]
    elif os.path.isfile(index):
        place = index
        stated = read_json(index).get("weight_map") or {}
        paths = [os.path.join(folder, name) for name in sorted(set(stated.values()))]
        if not paths:
            raise UserError(f"{index}: expected a weight_map with files, found none; copy it again")
    else:
        raise UserError(
            f"{whole}: expected the model's weights, found no such file; give a folder with "
            f"{CONFIG} and {WEIGHTS}, or {INDEX} and its shards (a pytorch_model.bin is converted "
            "by transformers: from_pretrained, then save_pretrained)."
        )
    stored: dict[str, Stored] = {}
    with contextlib.ExitStack() as stack:
        path = place
        try:
            for path in paths:
                if not os.path.isfile(path):
                    raise UserError(f"{path}: {INDEX} names it, and there is no such file.")
                handle = stack.enter_context(safe_open(path, framework="numpy"))
                stored |= {name: Stored(path, name, handle) for name in handle.keys()}
            lies = {name: os.path.basename(tensor.path) for name, tensor in stored.items()}
            lost = sorted(name for name, file in stated.items() if file != lies.get(name))
            if lost:
                raise UserError(
                    f"{index}: {lost[0]} should lie in {stated[lost[0]]}, and does not "
                    f"({len(lost)} such); the files are not of one model."
                )
            yield stored, place
        except SafetensorError as error:
            raise UserError(
                f"{path}: expected a safetensors file; reading it failed: {error}. Copy it again."
            ) from error


def read_tensors(
    place: str, stored: Mapping[str, Stored], wanted: Tensors, ignored: tuple[str, ...] = ()
) -> dict[tuple[str, ...], np.ndarray]:
    """The wanted parameters, float32.

    Raises:
      UserError: the tensors at `place` do not fit: those that are missing or too many, but for
        `ignored`, are named, or the first of another shape with both.
    """
    names = [name for tensor in wanted.values() for name in tensor.names]
    missing = [name for name in names if name not in stored]
    surplus = sorted(set(stored) - {*names, *ignored})
    if missing or surplus:
        wrong = []
        for what, found in (("missing", missing), ("too many", surplus)):
            if found:
                more = f" and {len(found) - 3} more" if len(found) > 3 else ""
                wrong.append(f"{what}: {', '.join(found[:3])}{more}")
        raise UserError(
            f"{place}: the tensors do not fit {CONFIG} beside it: {'; '.join(wrong)}. The two "
            "are not of one model."
        )
    for tensor in wanted.values():
        for name in tensor.names:
            shape = stored[name].shape()
            if shape != tensor.shape:
                raise UserError(
                    f"{stored[name].path}: tensor {name} is {list(shape)}, but {CONFIG} beside it "
                    f"asks for {list(tensor.shape)}; the two files are not of one model."
                )
    return {
        where: tensor.read([stored[name].value() for name in tensor.names])
        for where, tensor in wanted.items()
    }


def write_tensors(path: str, wanted: Tensors, flat: Mapping[tuple[str, ...], np.ndarray]) -> None:
    """Writes parameters, by path, to one safetensors file."""
    arrays: dict[str, np.ndarray] = {}
    for where, tensor in wanted.items():
        arrays |= dict(zip(tensor.names, tensor.write(flat[where]), strict=True))
    save_file(arrays, path, metadata={"format": "pt"})
