"""The steps that `compile` lowers, with abstract arguments: the functions that the stages jit.

A request has the maximum of text, history and candidates that its settings allow; batches with
fewer candidates cost less. Shapes come only from settings and `Sizes`; WORK_DIR is not read.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from onesug_jax.align.pretrain import pretrain_stage, step_flops
from onesug_jax.align.rwr import rwr_stage
from onesug_jax.model.config import ModelConfig
from onesug_jax.model.items import Items, ItemTables
from onesug_jax.model.seq2seq import Seq2Seq
from onesug_jax.model.unrolled import for_decoding
from onesug_jax.pipeline.spec import Context
from onesug_jax.retrieval.tables import WORDS
from onesug_jax.train import mesh as meshes
from onesug_jax.train.compile import Step
from onesug_jax.train.step import make_train_step
from onesug_jax.train.train_state import abstract_state

Shapes = dict[str, tuple[tuple[int, ...], str]]  # name -> shape and type


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes that are not settings.

    Attributes:
      vocabulary: number of tokens.
      vector: width of e_p* and of the items' vectors.
      lists: number of requests in a serving batch.
      queries: number of the shop's queries, and also of its prefixes.
    """

    vocabulary: int
    vector: int
    lists: int
    queries: int


@dataclasses.dataclass(frozen=True)
class Changes:
    """Values that replace settings of a step; None: the setting."""

    accumulation: int | None = None
    remat: str | None = None
    fsdp: int | None = None


def build_step(
    name: str, context: Context, devices: list, sizes: Sizes, changes: Changes = Changes()
) -> Step:
    """The step `name`, one of `STEPS`, laid out over the devices.

    Raises:
      UserError: its batch or a parameter does not divide over the mesh.
    """
    return STEPS[name](context, devices, sizes, changes)


def _mesh(context: Context, devices: list, changes: Changes) -> Mesh:
    axes = {} if changes.fsdp is None else {"fsdp": changes.fsdp, "data": -1}
    return context.configured("make_mesh")(devices=devices, **axes)


def _model(context: Context, sizes: Sizes, changes: Changes = Changes()):
    """The model as the pretrain stage would configure it, and the features of a request."""
    spec, tokens = context.configured("FeatureSpec")(), sizes.vocabulary
    width = {"vector_dim" if spec.items else "soft_dim": sizes.vector}
    config = context.configured("ModelConfig")(
        vocab_size=tokens,
        soft_id=tokens - 1,
        first_marker=tokens - 64,
        last_marker=tokens - 2,
        count_columns=context.configured("AsOfConfig")().width,
        **(width if spec.items or spec.soft else {}),
    )
    if changes.remat is not None:
        config = dataclasses.replace(config, remat=changes.remat)
    return config, spec


def _on(mesh: Mesh, shapes: Shapes) -> dict[str, Any]:
    """Arrays of a batch, sharded over the mesh."""
    laid_out = meshes.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=laid_out)
        for name, (shape, dtype) in shapes.items()
    }


def _everywhere(mesh: Mesh, shape: tuple[int, ...], dtype: str = "int32") -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=meshes.replicated(mesh))


def _tables(mesh: Mesh, sizes: Sizes) -> ItemTables:
    rows, queries = sizes.queries + 1, (sizes.queries + 1, WORDS)
    vectors = _everywhere(mesh, (rows, sizes.vector), "float32")
    weights = _everywhere(mesh, queries, "float32")
    lengths = _everywhere(mesh, (rows,), "float32")
    return ItemTables(vectors, _everywhere(mesh, queries), weights, lengths, vectors)


def _requests(context: Context, spec, config: ModelConfig, batch: int, candidates: int) -> Shapes:
    """The arrays of `batch` requests, as in the loader."""
    out: Shapes = {"encoder_input_tokens": ((batch, spec.input_length), "int32")}
    if config.vector_dim:
        history = context.settings["AsOfConfig.history"]
        out |= {
            "candidates": ((batch, candidates), "int32"),
            "candidate_counts": ((batch, candidates, config.count_columns), "float32"),
            "history": ((batch, history), "int32"),
            "history_minutes": ((batch, history), "float32"),
            "clock": ((batch, 2), "int32"),
            "prefix_row": ((batch,), "int32"),
            "typed": ((batch,), "int32"),
            "target_candidate": ((batch,), "int32"),
            "weight": ((batch,), "float32"),
        }
    elif config.soft_dim:
        out["encoder_soft"] = ((batch, 1, config.soft_dim), "float32")
    return out


def _lengths(context: Context, spec, config: ModelConfig) -> tuple[int, int, int]:
    """Encoder positions: text, history, and candidates of the widest training batch."""
    if not config.vector_dim:
        return spec.input_length, 0, 0
    settings = context.settings
    return spec.input_length, settings["AsOfConfig.history"], max(settings["ItemLoader.sizes"])


def _train_step(name, stage, optimizer, mesh, batch, context, changes, **costs) -> Step:
    """The jitted update of a training stage, as in the training loop."""
    size = context.settings[f"{name}.batch_size"]
    meshes.check_divides(mesh.shape, size, f"{name}.batch_size")
    like = abstract_state(stage, optimizer, mesh)
    step = make_train_step(
        stage,
        optimizer,
        mesh,
        changes.accumulation or context.settings[f"{name}.accumulation"],
        context.seed,
        context.configured("compiler_options")(mesh),
    )
    return Step(name, step, (like, _on(mesh, batch), stage.frozen), mesh, examples=size, **costs)


def _pretrain(context: Context, devices: list, sizes: Sizes, changes: Changes) -> Step:
    config, spec = _model(context, sizes, changes)
    mesh = _mesh(context, devices, changes)
    size, target = context.settings["pretrain.batch_size"], spec.target_length
    text, history, candidates = _lengths(context, spec, config)
    batch = _requests(context, spec, config, size, candidates) | {
        "decoder_input_tokens": ((size, target), "int32"),
        "decoder_target_tokens": ((size, target), "int32"),
        "decoder_loss_weights": ((size, target), "float32"),
    }
    tables = _tables(mesh, sizes) if spec.items else None
    return _train_step(
        "pretrain",
        pretrain_stage(config, tables),
        context.configured("make_optimizer")(steps=context.settings["pretrain.steps"]),
        mesh,
        batch,
        context,
        changes,
        model_flops=size * step_flops(config, text, target, history, candidates),
        tokens=size * (text + history + candidates + target),
    )


def _rwr(context: Context, devices: list, sizes: Sizes, changes: Changes) -> Step:
    config, spec = _model(context, sizes, changes)
    mesh = _mesh(context, devices, changes)
    objective = context.configured("PreferenceConfig")()
    optimizer = context.configured("rwr/make_optimizer")(steps=context.settings["rwr.steps"] or 1)
    frozen = abstract_state(rwr_stage(config, objective), optimizer, mesh).params
    size, target = context.settings["rwr.batch_size"], spec.target_length
    text, history, candidates = _lengths(context, spec, config)
    request = config.flops_per_example(text, 0, history, candidates)
    if config.writes_candidates:
        width = candidates
        lists, tokens = {}, text + history + candidates
        flops = config.flops_per_example(text, 1, history, candidates)
    else:
        width = 1 + context.configured("ListConfig")().negatives
        lists, tokens = {"list_targets": ((size, width, target), "int32")}, text + width * target
        flops = request + width * (config.flops_per_example(text, target) - request)
    scored: Shapes = {"rewards": ((size, width), "float32"), "levels": ((size, width), "int32")}
    batch = _requests(context, spec, config, size, candidates) | lists | scored
    tables = _tables(mesh, sizes) if spec.items else None
    return _train_step(
        "rwr",
        rwr_stage(config, objective, frozen, tables),
        optimizer,
        mesh,
        batch,
        context,
        changes,
        model_flops=4 * size * flops,  # the policy's step and the reference's forward pass
        tokens=size * tokens,
    )


def _align(context: Context, devices: list, sizes: Sizes, changes: Changes) -> Step:
    from onesug_jax.text_encoder.bert import EncoderConfig
    from onesug_jax.text_encoder.contrastive import contrastive_stage

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
        changes,
        model_flops=3 * (2 * size * config.layers * layer + 2 * size * size * d),
        tokens=2 * size * length,
    )


def _serve(context: Context, devices: list, sizes: Sizes, changes: Changes) -> Step:
    """The step that answers requests on one chip, with parameters in the compute type: scores of
    all candidates, or for a text model beams over indexed queries.
    """
    config, spec = _model(context, sizes)
    mesh = meshes.make_mesh(devices=devices[:1])
    boxed = jax.eval_shape(pretrain_stage(config).init_fn, jax.random.key(0))
    model = Seq2Seq(dataclasses.replace(config, dropout=0.0))
    laid = jax.eval_shape(lambda p: for_decoding(model, p)[1], meshes.unbox(boxed))
    params = jax.tree.map(lambda leaf: _everywhere(mesh, leaf.shape, leaf.dtype), laid)
    model = model.clone(unrolled=True)
    make = _candidates if config.writes_candidates else _beams
    return make(context, model, params, spec, mesh, sizes)


def _candidates(context: Context, model, params, spec, mesh: Mesh, sizes: Sizes) -> Step:
    settings, lists = context.settings, sizes.lists
    most, history = settings["AsOfConfig.candidates"], settings["AsOfConfig.history"]
    batch = _on(mesh, _requests(context, spec, model.config, lists, most))

    def search(params, batch, tables):
        def opening(model: Seq2Seq):
            text, items = batch["encoder_input_tokens"], Items.of(batch)
            assert items is not None
            encoded = model.encode(text, None, None, items, tables)
            return model.opening(encoded, model.given(text, items), items)

        return model.apply({"params": params}, method=opening)

    return Step(
        "serve",
        jax.jit(search),
        (params, batch, _tables(mesh, sizes)),
        mesh,
        model_flops=lists * model.config.flops_per_example(spec.input_length, 1, history, most),
        tokens=lists * (spec.input_length + history + most),
        examples=lists,
    )


def _beams(context: Context, model, params, spec, mesh: Mesh, sizes: Sizes) -> Step:
    from onesug_jax.decode.beam import beam_search
    from onesug_jax.decode.trie import Trie

    beam, config = context.configured("BeamConfig")(), model.config
    lists, nodes, length = sizes.lists, 4 * sizes.queries, beam.max_length
    trie = Trie(
        first_child=_everywhere(mesh, (nodes + 1,)),
        token=_everywhere(mesh, (nodes,), "uint16"),
        low=_everywhere(mesh, (nodes,)),
        high=_everywhere(mesh, (nodes,)),
        interval=_everywhere(mesh, (lists, 2)),
        root_width=4096,
        width=1024,
    )
    soft = _everywhere(mesh, (lists, 1, config.soft_dim), "float32") if config.soft_dim else None

    def search(params, tokens, soft, trie):
        return beam_search(model, params, tokens, trie, beam, soft)

    encode = config.flops_per_example(spec.input_length, 0)
    decode = beam.beams * (config.flops_per_example(spec.input_length, length) - encode)
    return Step(
        "serve",
        jax.jit(search),
        (params, _everywhere(mesh, (lists, spec.input_length)), soft, trie),
        mesh,
        model_flops=lists * (encode + decode),
        tokens=lists * length * beam.returned,
        examples=lists,
        unknown_trips=length - 1,
    )


STEPS = {"pretrain": _pretrain, "rwr": _rwr, "align": _align, "serve": _serve}
