"""T5 weights of a T5X checkpoint, in: T5 v1.1, Flan-T5, mT5 and umT5 as Google publishes them.

A folder `checkpoint_STEP/` holds the file `checkpoint` (msgpack, written by Flax) and one zarr
array a large parameter, which that file names. Optimizer states are not read. What differs from
`Seq2Seq`:

- Layers are `layers_0`, `layers_1`, ... or, where the model was scanned, one array whose second
  axis is the layer. Heads may lie side by side in one axis.
- The token table lies there as it is added to the stream; here it is smaller by sqrt(d_model)
  (`Seq2Seq._embed`).
- It states no sizes: they follow from the shapes. The longest relative distance does not; T5X's
  default is 128.

`hf.write_t5` writes what was read as a folder that training starts from.
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
_BLOCKS = {  # ours -> T5X's, a side
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
      UserError: there is no such file, it is damaged, or its model is not one that `Seq2Seq`
        computes; the first parameter that is missing or too many is named.
    """
    place = os.path.join(folder, FILE)
    stored = {path: _array(folder, leaf) for path, leaf in _target(place).items()}
    stored = _unstacked(stored)
    if ("encoder", "layers_0", "mlp", "wi", "kernel") in stored:
        raise UserError(
            f"{place}: its layers have one input product (mlp/wi), as the first T5 of 2019; "
            "supported are gated ones (wi_0 and wi_1), as in T5 v1.1, Flan-T5, mT5 and umT5."
        )
    layers = {side: _count(place, stored, side) for side in _BLOCKS}
    separate = ("encoder", "layers_0", *_POSITIONS) in stored
    where = ("encoder", "layers_0", *_POSITIONS) if separate else ("encoder", *_POSITIONS)
    heads, buckets = _take(place, stored, where).shape
    vocabulary, width = _take(place, stored, ("token_embedder", "embedding")).shape
    joined = _take(place, stored, ("encoder", "layers_0", "attention", "query", "kernel"))
    inner = _take(place, stored, ("encoder", "layers_0", "mlp", "wi_0", "kernel")).shape[1]
    config = ModelConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_heads=heads,
        head_dim=joined.size // (width * heads),
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
        parts = [_take(place, stored, name) for name in theirs]
        used.update(theirs)
        wrong = next((p for p in zip(theirs, parts, strict=True) if p[1].size != shape[1]), None)
        if wrong:
            raise UserError(
                f"{place}: {'/'.join(wrong[0])} is {list(wrong[1].shape)}, which does not fit the "
                f"sizes of the rest ({list(shape[0])}); the checkpoint is not of one model."
            )
        made = [part.reshape(shape[0]) for part in parts]
        flat[ours] = np.stack(made) if ours[0] in _BLOCKS else made[0]
    surplus = sorted("/".join(name) for name in stored.keys() - used)
    if surplus:
        raise UserError(
            f"{place}: {surplus[0]} and {len(surplus) - 1} more are parameters that no supported "
            "model has; expected T5 v1.1, Flan-T5, mT5 or umT5."
        )
    flat[("embedding",)] = flat[("embedding",)] / np.float32(width**0.5)
    return config, unflatten_dict(flat)


_Name = tuple[str, ...]
_Shape = tuple[tuple[int, ...], int]  # of one layer, and how many values


def _parameters(c: ModelConfig) -> dict[_Name, tuple[Sequence[_Name], _Shape]]:
    """Ours -> the names it is stacked from, and the shape of one."""
    found: dict[_Name, tuple[Sequence[_Name], _Shape]] = {}

    def put(ours: _Name, theirs: Sequence[_Name], *shape: int) -> None:
        found[ours] = theirs, (shape, int(np.prod(shape)))

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
    return found


def _target(place: str) -> dict[tuple[str, ...], Any]:
    """The parameters of the msgpack file: arrays, or what says where a zarr array lies."""
    from flax import serialization

    try:
        with open(place, "rb") as file:
            content = serialization.msgpack_restore(file.read())
        target = content["optimizer"]["target"]
    except FileNotFoundError:
        raise UserError(
            f"{place}: expected T5X's file of this name, found none; give the folder "
            "checkpoint_STEP itself."
        ) from None
    except OSError:
        raise
    except Exception as error:  # msgpack raises many kinds
        raise UserError(
            f"{place}: expected a T5X checkpoint (msgpack with optimizer/target), found another "
            f"file ({type(error).__name__}: {error}); copy it again."
        ) from error
    return flatten_dict(target, is_leaf=lambda _, leaf: "kvstore" in leaf)


def _array(folder: str, leaf: Any) -> np.ndarray:
    """A parameter in float32; a stored reference is read from its zarr array."""
    if isinstance(leaf, Mapping):
        import tensorstore

        # written on a bucket or elsewhere; it lies beside the msgpack file now
        inside = leaf["kvstore"].get("path") or leaf.get("path", "")
        path = os.path.join(os.path.abspath(folder), os.path.basename(inside.rstrip("/")))
        spec = {"driver": leaf["driver"], "kvstore": {"driver": "file", "path": path}}
        try:
            leaf = tensorstore.open(spec, open=True).result().read().result()
        except ValueError as error:
            raise UserError(
                f"{path}: expected an array that {FILE} beside it names; reading it failed: "
                f"{str(error).splitlines()[0]} Copy the whole folder again."
            ) from error
    return np.asarray(leaf).astype(np.float32)


def _unstacked(
    stored: Mapping[tuple[str, ...], np.ndarray],
) -> dict[tuple[str, ...], np.ndarray]:
    """The names `layers_N` of a scanned model, whose arrays have the layer as second axis."""
    found: dict[tuple[str, ...], np.ndarray] = {}
    for name, value in stored.items():
        if name[0] in _BLOCKS and name[1] == name[0]:
            if name[2:] == _POSITIONS and value.ndim == 2:  # one table for all layers
                found[(name[0], *_POSITIONS)] = value
                continue
            for number, layer in enumerate(np.moveaxis(value, 1, 0)):
                found[(name[0], f"layers_{number}", *name[2:])] = layer
        else:
            found[name] = value
    return found


def _count(place: str, stored: Mapping[tuple[str, ...], Any], side: str) -> int:
    numbers = {name[1] for name in stored if name[0] == side and name[1].startswith("layers_")}
    if not numbers:
        raise UserError(
            f"{place}: expected {side}/layers_0, or {side}/{side} of a scanned model, found "
            f"neither; supported are T5 v1.1, Flan-T5, mT5 and umT5."
        )
    return len(numbers)


def _take(
    place: str, stored: Mapping[tuple[str, ...], np.ndarray], name: tuple[str, ...]
) -> np.ndarray:
    if name not in stored:
        raise UserError(
            f"{place}: expected the parameter {'/'.join(name)}, found none of that name; "
            "supported are T5 v1.1, Flan-T5, mT5 and umT5."
        )
    return stored[name]
