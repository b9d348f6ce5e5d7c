"""The stage that compiles every step for chips which are not here (`train/compile.py`)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

from onesug_jax.errors import UserError
from onesug_jax.pipeline.spec import Context

if TYPE_CHECKING:
    import jax

    from onesug_jax.train.compile import Step

WHAT = ("pretrain", "rwr", "align", "beam")
DOES_NOT_FIT = 2


def compile_ahead(
    context: Context,
    *,
    vocabulary: int = 32_768,
    vector: int = 128,
    lists: int = 256,
    known: int = 1_000_000,
) -> int:
    """Compiles the configured steps for `--topology` and says what each costs.

    Nothing of WORK_DIR is read: shapes alone count. `vocabulary` is the number of tokens, `vector`
    the width of the soft token where FeatureSpec.soft, `lists` how many requests a serving batch
    holds, `known` how many queries the trie of the serving beam holds.

    Returns:
      0, or 2 where a step does not fit.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the chips compiled for are not here
    from onesug_jax.train.chips import Topology
    from onesug_jax.train.compile import analyse, format_analysis

    options = context.options
    wanted = [word.strip() for word in options.only.split(",")]
    unknown = [word for word in wanted if word not in WHAT]
    if unknown:
        raise UserError(f"--only={options.only}: expected some of {', '.join(WHAT)}")
    topology = Topology.parse(options.topology)
    devices = topology.devices()
    sizes = {"vocabulary": vocabulary, "vector": vector, "lists": lists, "known": known}
    found, changes = [], {}
    for word in wanted:
        one = analyse(_step(word, context, devices, sizes), topology)
        found.append(one)
        if not options.json:
            print(format_analysis(one), flush=True)
        if not one.fits:
            changes[word] = _nearest(word, context, devices, sizes, topology)
            if not options.json:
                print(f"  {changes[word]}", flush=True)
    if options.json:
        rows = [
            {**dataclasses.asdict(one), "bound": one.bound, "change": changes.get(word)}
            for word, one in zip(wanted, found, strict=True)
        ]
        print(json.dumps(rows, indent=1))
    return 0 if all(one.fits for one in found) else DOES_NOT_FIT


def flags(parser: argparse.ArgumentParser) -> None:
    """What to compile for."""
    parser.add_argument(
        "--topology", required=True, help="chips and shape: v5e:4x4, v5e:16x16, v5p:4x4x8, ..."
    )
    parser.add_argument(
        "--only", default=",".join(WHAT), help=f"which steps, of {','.join(WHAT)} (default all)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list")


def _step(word: str, context: Context, devices, sizes, **changes) -> Step:
    """The step `word`; `changes` are of the mesh, the model, or the microbatches."""
    make = {"pretrain": _pretrain, "rwr": _rwr, "align": _align, "beam": _beam}[word]
    return make(context, devices, sizes, changes)


def _mesh(context: Context, devices, changes) -> jax.sharding.Mesh:
    axes = {k: v for k, v in changes.items() if k in ("data", "fsdp", "tensor")}
    return context.configured("make_mesh")(devices=devices, **axes)


def _model(context: Context, sizes, changes):
    """The model as the pretrain stage would configure it, with ids for the tokens it must know."""
    spec = context.configured("FeatureSpec")()
    config = context.configured("ModelConfig")(
        vocab_size=sizes["vocabulary"],
        soft_dim=sizes["vector"] if spec.soft else 0,
        soft_id=sizes["vocabulary"] - 1,
        first_marker=sizes["vocabulary"] - 64,
        last_marker=sizes["vocabulary"] - 2,
    )
    if "remat" in changes:
        config = dataclasses.replace(config, remat=changes["remat"])
    return config, spec


def _train_step(name, stage, optimizer, mesh, batch, context, changes, **costs) -> Step:
    """The jitted update of a training stage, as the training loop makes it.

    Raises:
      UserError: its batch does not divide over the mesh.
    """
    import jax

    from onesug_jax.train import mesh as meshes
    from onesug_jax.train.compile import Step
    from onesug_jax.train.step import abstract_state, make_train_step, shardings_of

    meshes.check_batch(mesh, costs["examples"], f"{name}.batch_size")
    like = abstract_state(stage, optimizer, mesh)
    step = make_train_step(
        stage, optimizer, mesh, shardings_of(like), changes.get("accumulation", 1), context.seed
    )
    laid_out = meshes.batch_sharding(mesh)
    batch = {
        key: jax.ShapeDtypeStruct(shape, dtype, sharding=laid_out)
        for key, (shape, dtype) in batch.items()
    }
    return Step(name, step, (like, batch, stage.frozen), mesh, **costs)


def _requests(spec, config, batch: int) -> dict:
    """Arrays of `batch` encoded requests: name -> shape and type."""
    out: dict[str, tuple] = {"encoder_input_tokens": ((batch, spec.input_length), "int32")}
    if config.soft_dim:
        out["encoder_soft"] = ((batch, 1, config.soft_dim), "float32")
    return out


def _pretrain(context: Context, devices, sizes, changes) -> Step:
    from onesug_jax.align.pretrain import pretrain_stage

    config, spec = _model(context, sizes, changes)
    size, target = context.settings["pretrain.batch_size"], spec.target_length
    given = {"accumulation": context.settings["pretrain.accumulation"], **changes}
    batch = _requests(spec, config, size) | {
        "decoder_input_tokens": ((size, target), "int32"),
        "decoder_target_tokens": ((size, target), "int32"),
        "decoder_loss_weights": ((size, target), "float32"),
    }
    return _train_step(
        "pretrain",
        pretrain_stage(config),
        context.configured("make_optimizer")(steps=context.settings["pretrain.steps"]),
        _mesh(context, devices, changes),
        batch,
        context,
        given,
        model_flops=3 * size * config.flops_per_example(spec.input_length, target),
        tokens=size * (spec.input_length + target),
        examples=size,
    )


def _rwr(context: Context, devices, sizes, changes) -> Step:
    from onesug_jax.align.rwr import rwr_stage
    from onesug_jax.train.step import abstract_state

    config, spec = _model(context, sizes, changes)
    size, target = context.settings["rwr.batch_size"], spec.target_length
    given = {"accumulation": context.settings["rwr.accumulation"], **changes}
    targets = 1 + context.configured("ListConfig")().negatives
    objective = context.configured("PreferenceConfig")()
    optimizer = context.configured("rwr/make_optimizer")(steps=context.settings["rwr.steps"] or 1)
    mesh = _mesh(context, devices, changes)
    frozen = abstract_state(rwr_stage(config, objective), optimizer, mesh).params
    batch = _requests(spec, config, size) | {
        "list_targets": ((size, targets, target), "int32"),
        "rewards": ((size, targets), "float32"),
        "levels": ((size, targets), "int32"),
    }
    # The request once, and every target what it adds to it.
    request = config.flops_per_example(spec.input_length, 0)
    one = config.flops_per_example(spec.input_length, target) - request
    return _train_step(
        "rwr",
        rwr_stage(config, objective, frozen),
        optimizer,
        mesh,
        batch,
        context,
        given,
        model_flops=4 * size * (request + targets * one),  # the policy's step, the reference's pass
        tokens=size * (spec.input_length + targets * target),
        examples=size,
    )


def _align(context: Context, devices, sizes, changes) -> Step:
    from onesug_jax.represent.bert import EncoderConfig
    from onesug_jax.represent.contrastive import contrastive_stage

    spec = context.configured("EncoderSpec")()
    fields = {f.name for f in dataclasses.fields(EncoderConfig)}
    config = EncoderConfig(
        **{k: v for k, v in dataclasses.asdict(spec).items() if k in fields},
        max_positions=max(spec.max_length, 64),
    )
    size, length = context.settings["align.batch_size"], config.max_length
    d, ff = config.d_model, config.d_ff
    layer = length * (2 * 4 * d * d + 2 * 2 * d * ff + 4 * length * d)
    return _train_step(
        "align",
        contrastive_stage(config, context.settings["align.temperature"]),
        context.configured("align/make_optimizer")(steps=context.settings["align.steps"] or 1),
        _mesh(context, devices, changes),
        {
            "tokens": ((size, 2, length), "int32"),
            "lengths": ((size, 2), "int32"),
            "texts": ((size, 2), "int32"),
        },
        context,
        {"accumulation": context.settings["align.accumulation"], **changes},
        model_flops=3 * (2 * size * config.layers * layer + 2 * size * size * d),
        tokens=2 * size * length,
        examples=size,
    )


def _beam(context: Context, devices, sizes, changes) -> Step:
    """The serving beam on one chip: parameters in the compute type, lists kept to known queries."""
    import jax
    import jax.numpy as jnp

    from onesug_jax.align.pretrain import pretrain_stage
    from onesug_jax.decode.beam import beam_search
    from onesug_jax.decode.trie import Trie
    from onesug_jax.model.seq2seq import Seq2Seq
    from onesug_jax.model.unrolled import for_decoding
    from onesug_jax.train import mesh as meshes
    from onesug_jax.train.compile import Step

    config, spec = _model(context, sizes, changes)
    beam = context.configured("BeamConfig")()
    mesh = meshes.make_mesh(devices=devices[:1])
    here, lists, nodes = meshes.replicated(mesh), sizes["lists"], 4 * sizes["known"]

    def array(shape, dtype="int32"):
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=here)

    boxed = jax.eval_shape(pretrain_stage(config).init_fn, jax.random.key(0))
    model = Seq2Seq(dataclasses.replace(config, dropout=0.0))
    laid = jax.eval_shape(lambda p: for_decoding(model, p)[1], meshes.unbox(boxed))
    params = jax.tree.map(lambda leaf: array(leaf.shape, leaf.dtype), laid)
    model = model.clone(unrolled=True)
    trie = Trie(
        first_child=array((nodes + 1,)),
        token=array((nodes,), "uint16"),
        low=array((nodes,)),
        high=array((nodes,)),
        interval=array((lists, 2)),
        root_width=4096,
        width=1024,
    )
    soft = array((lists, 1, config.soft_dim), "float32") if config.soft_dim else None

    def search(params, tokens, soft, trie):
        return beam_search(model, params, tokens, trie, beam, soft)

    length = beam.max_length
    encode = config.flops_per_example(spec.input_length, 0)
    decode = beam.beams * (config.flops_per_example(spec.input_length, length) - encode)
    return Step(
        "beam",
        jax.jit(search),
        (params, array((lists, spec.input_length)), soft, trie),
        mesh,
        model_flops=lists * (encode + decode),
        tokens=lists * length * beam.returned,
        examples=lists,
        unknown_trips=length - 1,
    )


def _nearest(word: str, context: Context, devices, sizes, topology) -> str:
    """The first change that makes a step fit, tried one after another; each is compiled."""
    from onesug_jax.train.compile import analyse

    if word == "beam":
        tries: list[tuple[str, dict[str, Any]]] = []
    else:
        batch = context.settings[f"{word}.batch_size"]
        before = dict(_step(word, context, devices, sizes).mesh.shape)
        parts = before["data"] * before["fsdp"]
        tries = [] if word == "align" else [("ModelConfig.remat='full'", {"remat": "full"})]
        more = 2
        while batch // more >= parts:
            told = f"{word}.accumulation={more}"
            tries.append((told, {"accumulation": more}))
            if word != "align":
                tries.append(
                    (
                        f"{told} --gin.ModelConfig.remat='full'",
                        {
                            "accumulation": more,
                            "remat": "full",
                        },
                    )
                )
            more *= 4
        fsdp = before["fsdp"]
        while fsdp * 2 <= parts:
            fsdp *= 2
            axes = {"data": parts // fsdp, "fsdp": fsdp, "tensor": before["tensor"]}
            told = " --gin.".join(f"make_mesh.{axis}={size}" for axis, size in axes.items())
            extra = {} if word == "align" else {"remat": "full"}
            tries.append(
                (told + (" --gin.ModelConfig.remat='full'" if extra else ""), axes | extra)
            )
    for told, change in tries:
        if analyse(_step(word, context, devices, sizes, **change), topology).fits:
            return f"it fits with --gin.{told}"
    if word == "beam":
        return "serve smaller batches (--gin.compile.lists), or a smaller model"
    return (
        "no change of microbatches, recomputation or fsdp makes it fit: take more chips, a smaller "
        "batch or a smaller model"
    )
