"""The stage that trains the encoder-decoder on the searched queries."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

from onesug_jax.files import write_json
from onesug_jax.pipeline.mirror import fetch
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import read_result
from onesug_jax.stages import checks, pretrained, scoring, trained, watch
from onesug_jax.stages.parts import Parts, on_device
from onesug_jax.stages.trained_model import TrainedModel
from onesug_jax.train import distributed


def pretrain(
    context: Context,
    *,
    steps: int = 2000,
    batch_size: int = 64,
    accumulation: int = 1,
    log_every: int = 50,
    checkpoint_every: int = 500,
    evaluate_every: int = 500,
    dev_rows: int = 500,
    params_from: str | None = None,
    profile_steps: tuple[int, int] | None = None,
) -> None:
    """Trains the SFT model, into WORK_DIR/pretrain: next-token loss, best parameters by dev MRR@16.

    Every `evaluate_every` steps the model writes lists for the first `dev_rows` rows of the dev
    split (0: never; then the last parameters are used). `params_from` is the source of the initial
    parameters: a trained stage's folder, local or in a bucket, or a T5 in the Hugging Face layout
    with the vocabulary's pieces (`vocab.pretrained`). The steps `profile_steps`, (first, last), are
    traced into WORK_DIR/pretrain/profile.
    """
    from onesug_jax.align.pretrain import pretrain_stage, step_flops
    from onesug_jax.model.hf_config import is_folder
    from onesug_jax.train import loop
    from onesug_jax.train import mesh as meshes
    from onesug_jax.train.chips import published_flops
    from onesug_jax.train.compiler import cache_programs

    cache_programs(context.compiled)
    if params_from is not None:
        params_from = pretrained.parameters_from("pretrain.params_from", params_from)
    work, parts = context.work, Parts(context.work)
    vocabulary = parts.vocabulary
    features = read_result(os.path.join(work.examples, "features.json"))
    mesh = context.configured("make_mesh")()
    load = functools.partial(
        context.configured("ItemLoader" if features["items"] else "Loader"),
        work.examples,
        batch_size=batch_size,
        seed=context.seed,
        process_rows=meshes.process_batch_shard(mesh, batch_size),
        vocabulary=vocabulary.fingerprint,
        fetch=fetch,
    )
    loader = load()
    sizes = {"vocab_size": vocabulary.size, "soft_id": vocabulary.soft_id}
    sizes |= {"first_marker": vocabulary.first_marker, "last_marker": vocabulary.last_marker}
    tables = None
    if features["items"]:
        tables = meshes.replicate(mesh, on_device(parts.tables()))
        columns = loader.examples.shapes["candidate_counts"][1]
        sizes |= {"vector_dim": tables.vectors.shape[1], "count_columns": columns}
    else:
        sizes |= {"soft_dim": loader.soft_dim}
    config = context.configured("ModelConfig")(**sizes)
    stage = pretrain_stage(config, tables)
    initial: str | Callable | None = params_from
    if params_from is not None and is_folder(params_from):
        pretrained.check_fits(params_from, config, vocabulary)
        initial = functools.partial(
            pretrained.read, params_from, config, vocabulary, stage.init_fn, context.seed
        )
    elif params_from is not None:
        setting = "pretrain.params_from"
        pretrained.check_vocabulary(setting, params_from, vocabulary.fingerprint)
    print(f"{config.parameters():,} parameters; {loader.describe()}", flush=True)
    model = {
        "model": dataclasses.asdict(config),
        "features": features,
        "vocabulary": vocabulary.fingerprint,
        "tasks": loader.tasks,
    }
    write_json(os.path.join(work.pretrain, trained.MODEL_FILE), model)  # equal in every process

    dev = os.path.join(work.log, "dev.parquet")
    watched = bool(evaluate_every and dev_rows and os.path.exists(dev))
    if watched and features["items"] and not config.writes_candidates:
        watched = False  # the evaluation scores candidate tokens
        print("pretrain: no evaluation on dev, as ModelConfig.candidate_tokens = False", flush=True)
    if not watched:
        dev_metrics = None
    elif features["items"]:
        queries = parts.completions.queries
        dev_metrics = watch.watch(load(split="dev"), config, tables, mesh, dev_rows, dev, queries)
    else:
        scores_of = scoring.watch_lists(TrainedModel(context, "pretrain"), dev, work.log, dev_rows)

        def dev_metrics(params, step: int) -> dict[str, Any]:
            scores, lists = scores_of(params)
            return {name: scores["all"][name] for name in ("hr@16", "mrr@16")} | {"lists": lists}

    cost = loader.mean_cost(functools.partial(step_flops, config))

    loop.fit(
        stage,
        batch_at=loader.batch_at,
        batch_size=batch_size,
        mesh=mesh,
        optimizer=context.configured("make_optimizer")(steps=steps),
        steps=steps,
        seed=context.seed,
        folder=work.pretrain,
        states=context.states,
        accumulation=accumulation,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        evaluate_every=evaluate_every if watched else 0,
        evaluate_fn=dev_metrics,
        best_metric="mrr@16" if watched else None,
        params_from=initial,
        identity=trained.identity(context, config, vocabulary.fingerprint),
        settings=trained.noted(context),
        profile_steps=profile_steps,
        flops_per_example=cost,
        peak_flops=published_flops(mesh.devices.flat[0].device_kind),
        compiler_options=context.configured("compiler_options")(mesh),
    )
    distributed.run_on_primary_and_broadcast(lambda: trained.make_bundle(context, "pretrain"))


def describe_pretrain(context: Context) -> str:
    """The shapes of the batch and of every parameter, with logical axes; nothing is computed."""
    import flax.linen as nn
    import jax

    from onesug_jax.align.pretrain import pretrain_stage, step_flops
    from onesug_jax.tasks.vocabulary import VOCABULARY_FILE

    spec = context.configured("FeatureSpec")()
    made = os.path.exists(os.path.join(context.work.vocab, VOCABULARY_FILE))
    config = checks.model_config(context)
    size, soft = config.vocab_size, config.soft_dim
    batch = context.settings["pretrain.batch_size"]
    lines = [f"batch (at most; vocabulary {size:,}{'' if made else ', to be made'}):"]
    for name, length in (
        ("encoder_input_tokens", spec.input_length),
        ("decoder_input_tokens", spec.target_length),
        ("decoder_target_tokens", spec.target_length),
        ("decoder_loss_weights", spec.target_length),
    ):
        lines.append(f"  {name:<44} [{batch}, {length}]")
    if soft and not spec.items:
        lines.append(f"  {'encoder_soft':<44} [{batch}, 1, {soft}]")
    lines.append("parameters:")
    boxed = jax.eval_shape(pretrain_stage(config).init_fn, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(
        boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    )
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape, axes = list(leaf.value.shape), ", ".join(map(str, leaf.names))
        lines.append(f"  {name:<44} {str(shape):<22} {leaf.value.size:>13,}  ({axes})")
    lines.append(f"  in all {config.parameters():,}")
    if not spec.items:  # with items it depends on the candidates in the examples
        flops = step_flops(config, spec.input_length, spec.target_length)
        lines.append(f"  {flops / 1e9:,.2f} GFLOP a training example of full length")
    return "\n".join(lines)
