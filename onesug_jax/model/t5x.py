"""Reads T5X checkpoints: T5 v1.1, Flan-T5, mT5 and umT5 as Google publishes them.

A folder `checkpoint_STEP/` contains the file `checkpoint` (msgpack, written by Flax) and a zarr
array for each large parameter, which that file refers to. Optimizer states are not read. The
differences to `Seq2Seq`:

- Layers are `layers_0`, `layers_1`, ... or, in a scanned model, one array whose second axis is the
  layer. The heads may be concatenated in one axis.
- The checkpoint's token table is not scaled; here it is smaller by sqrt(d_model)
  (`Seq2Seq._embed`).
- The sizes follow from the shapes, except the longest relative distance, 128 by T5X's default.

`hf.write_t5` writes the result as a folder for training.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from onesug_jax.errors import UserError
from onesug_jax.model.config import ModelConfig

FILE = "checkpoint"
_BLOCKS = {  # side -> our name -> T5X's name
    "encoder": {"attention": "attention"},
    "decoder": {"self_attention": "self_attention", "cross_attention": "encoder_decoder_attention"},
}
_MLP = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
_POSITIONS = ("relpos_bias", "rel_embedding")


def read_t5x(folder: str) -> tuple[ModelConfig, dict]:
    """The sizes and the parameters of `Seq2Seq` (float32, on the host) in a T5X checkpoint.

    Args:
      folder: checkpoint_STEP/, with the file `checkpoint` in it.

    Raises:
      UserError: the file is missing or damaged, or `Seq2Seq` does not implement its model; names
        the first missing or surplus parameter.
    """
    path = os.path.join(folder, FILE)
    stored = {name: _array(folder, leaf) for name, leaf in _target(path).items()}
    stored = _unstacked(stored)
    if ("encoder", "layers_0", "mlp", "wi", "kernel") in stored:
        raise UserError(
            f"{path}: its layers have one input product (mlp/wi), as in the first T5 of 2019; "
            "supported are gated ones (wi_0 and wi_1), as in T5 v1.1, Flan-T5, mT5 and umT5."
        )
    layers = {side: _count(path, stored, side) for side in _BLOCKS}
    separate = ("encoder", "layers_0", *_POSITIONS) in stored
    table = ("encoder", "layers_0", *_POSITIONS) if separate else ("encoder", *_POSITIONS)
    heads, buckets = _take(path, stored, table).shape
    vocabulary, width = _take(path, stored, ("token_embedder", "embedding")).shape
    query = _take(path, stored, ("encoder", "layers_0", "attention", "query", "kernel"))
    inner = _take(path, stored, ("encoder", "layers_0", "mlp", "wi_0", "kernel")).shape[1]
    config = ModelConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_heads=heads,
        head_dim=query.size // (width * heads),
        d_ff=inner,
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        dropout=0.1,
        tie_embeddings=("decoder", "logits_dense", "kernel") not in stored,
        relative_buckets=buckets,
        positions_per_layer=separate,
    )
    flat: dict[tuple[str, ...], np.ndarray] = {}
    used: set[tuple[str, ...]] = set()
    for ours, (theirs, shape) in _parameters(config).items():
        parts = [_take(path, stored, name) for name in theirs]
        used.update(theirs)
        for name, part in zip(theirs, parts, strict=True):
            if part.size != np.prod(shape):
                raise UserError(
                    f"{path}: {'/'.join(name)} is {list(part.shape)}, which does not fit the sizes "
                    f"of the rest ({list(shape)}); the checkpoint is not of one model."
                )
        parts = [part.reshape(shape) for part in parts]
        flat[ours] = np.stack(parts) if ours[0] in _BLOCKS else parts[0]
    surplus = sorted("/".join(name) for name in stored.keys() - used)
    if surplus:
        raise UserError(
            f"{path}: {surplus[0]} and {len(surplus) - 1} more are parameters that no supported "
            "model has; expected T5 v1.1, Flan-T5, mT5 or umT5."
        )
    flat[("embedding",)] = flat[("embedding",)] / np.float32(width**0.5)
    return config, unflatten_dict(flat)


_Name = tuple[str, ...]


def _parameters(c: ModelConfig) -> dict[_Name, tuple[Sequence[_Name], tuple[int, ...]]]:
    """Our name -> the names of the layers' parameters, and the shape of one layer."""
    parameters: dict[_Name, tuple[Sequence[_Name], tuple[int, ...]]] = {}

    def put(ours: _Name, theirs: Sequence[_Name], *shape: int) -> None:
        parameters[ours] = theirs, shape

    put(("embedding",), [("token_embedder", "embedding")], c.vocab_size, c.d_model)
    for side, count in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
        stems = [(side, f"layers_{number}") for number in range(count)]
        for ours, theirs in _BLOCKS[side].items():
            for name in ("query", "key", "value", "out"):
                split, out = (c.num_heads, c.head_dim), name == "out"
                shape = (*split, c.d_model) if out else (c.d_model, *split)
                kernels = [(*s, theirs, name, "kernel") for s in stems]
                put((side, ours, name), kernels, *shape)
            # our norms: attention_norm, self_norm, cross_norm
            norm = "attention_norm" if side == "encoder" else ours.replace("attention", "norm")
            before = theirs.replace("encoder_decoder", "cross")
            names = [(*s, f"pre_{before}_layer_norm", "scale") for s in stems]
            put((side, norm, "scale"), names, c.d_model)
        for ours, theirs in _MLP.items():
            sizes = (c.d_ff, c.d_model) if ours == "down" else (c.d_model, c.d_ff)
            put((side, "mlp", ours), [(*s, "mlp", theirs, "kernel") for s in stems], *sizes)
        names = [(*s, "pre_mlp_layer_norm", "scale") for s in stems]
        put((side, "mlp_norm", "scale"), names, c.d_model)
        table = (c.num_heads, c.relative_buckets)
        if c.positions_per_layer:
            put((side, "positions", "table"), [(*s, *_POSITIONS) for s in stems], *table)
        else:
            put((f"{side}_positions", "table"), [(side, *_POSITIONS)], *table)
        put((f"{side}_norm", "scale"), [(side, f"{side}_norm", "scale")], c.d_model)
    if not c.tie_embeddings:
        put(("head",), [("decoder", "logits_dense", "kernel")], c.d_model, c.vocab_size)
    return parameters


def _target(path: str) -> dict[_Name, Any]:
    """The parameters in the msgpack file: arrays, or references to zarr arrays."""
    from flax import serialization

    try:
        with open(path, "rb") as file:
            content = serialization.msgpack_restore(file.read())
        target = content["optimizer"]["target"]
    except FileNotFoundError:
        raise UserError(
            f"{path}: expected T5X's file of this name, found none; give the folder "
            "checkpoint_STEP itself."
        ) from None
    except OSError:
        raise
    except Exception as error:  # msgpack raises many types
        raise UserError(
            f"{path}: expected a T5X checkpoint (msgpack with optimizer/target), found another "
            f"file ({type(error).__name__}: {error}); copy it again."
        ) from error
    return flatten_dict(target, is_leaf=lambda _, leaf: "kvstore" in leaf)


def _array(folder: str, leaf: Any) -> np.ndarray:
    """A parameter in float32; a stored reference is read from its zarr array."""
    if isinstance(leaf, Mapping):
        import tensorstore

        # The reference may be to a bucket; the copied array is beside the msgpack file.
        reference = leaf["kvstore"].get("path") or leaf.get("path", "")
        path = os.path.join(os.path.abspath(folder), os.path.basename(reference.rstrip("/")))
        spec = {"driver": leaf["driver"], "kvstore": {"driver": "file", "path": path}}
        try:
            leaf = tensorstore.open(spec, open=True).result().read().result()
        except ValueError as error:
            raise UserError(
                f"{path}: expected an array of {FILE} beside it; reading it failed: "
                f"{str(error).splitlines()[0]} Copy the whole folder again."
            ) from error
    return np.asarray(leaf).astype(np.float32)


def _unstacked(stored: Mapping[_Name, np.ndarray]) -> dict[_Name, np.ndarray]:
    """Splits the arrays of a scanned model, whose second axis is the layer, into `layers_N`."""
    arrays: dict[_Name, np.ndarray] = {}
    for name, value in stored.items():
        if name[0] in _BLOCKS and name[1] == name[0]:
            if name[2:] == _POSITIONS and value.ndim == 2:  # one table for all layers
                arrays[(name[0], *_POSITIONS)] = value
                continue
            for number, layer in enumerate(np.moveaxis(value, 1, 0)):
                arrays[(name[0], f"layers_{number}", *name[2:])] = layer
        else:
            arrays[name] = value
    return arrays


def _count(path: str, stored: Mapping[_Name, Any], side: str) -> int:
    layers = {name[1] for name in stored if name[0] == side and name[1].startswith("layers_")}
    if not layers:
        raise UserError(
            f"{path}: expected {side}/layers_0, or {side}/{side} of a scanned model, found "
            f"neither; supported are T5 v1.1, Flan-T5, mT5 and umT5."
        )
    return len(layers)


def _take(path: str, stored: Mapping[_Name, np.ndarray], name: _Name) -> np.ndarray:
    if name not in stored:
        raise UserError(
            f"{path}: expected the parameter {'/'.join(name)}, found no such parameter; "
            "supported are T5 v1.1, Flan-T5, mT5 and umT5."
        )
    return stored[name]
