"""The stages of preference alignment: rewards of users' behaviour, and training on them."""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from onesug_jax.errors import UserError
from onesug_jax.files import fingerprint, fingerprint_file, names_below, open_parquet, write_json
from onesug_jax.pipeline.mirror import fetch
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import split_files
from onesug_jax.stages import checks, prefer_candidates, pretrained, scoring, trained
from onesug_jax.stages.parts import Parts
from onesug_jax.stages.prefer_candidates import REWARDS_FILE
from onesug_jax.stages.trained_model import TrainedModel
from onesug_jax.stages.watch import LOWER, improves
from onesug_jax.train import distributed

if TYPE_CHECKING:
    import numpy as np

    from onesug_jax.align.preferences import Behaviour, Drawn

_SPLITS = ("train", "dev")
_WATCHED = ("mrr@16", "order_mrr@16", "value")


def rewards(context: Context) -> None:
    """Writes the behaviour of every row, and the reward of each query at each behaviour level, into
    WORK_DIR/rewards.
    """
    import numpy as np

    from onesug_jax.align import preferences
    from onesug_jax.align.rewards import reward_table

    if context.configured("FeatureSpec")().items:
        prefer_candidates.rewards(context)
        return
    work, index = context.work, Parts(context.work).completions
    pools = _pools(context, index)
    config = context.configured("RewardConfig")()
    report: dict[str, Any] = {}
    for split, path in split_files(work.log).items():
        if split not in _SPLITS:
            continue
        indexed = (lambda query: index.find(query) >= 0) if split == "train" else None
        behaviour = preferences.read_behaviour(
            _blocks(path, indexed), index.find, len(index), pools, index.top
        )
        behaviour.save(work.rewards, split)
        counts = behaviour.counts()
        report[split] = preferences.summary(behaviour, counts)
        if split == "train":
            np.save(os.path.join(work.rewards, REWARDS_FILE), reward_table(counts, config))
    write_json(os.path.join(work.rewards, "report.json"), report)
    print(preferences.format_summary(report["train"]), flush=True)


def check_rwr(context: Context) -> None:
    """Checks the settings of `rwr` and the folder of its initial parameters.

    Raises:
      UserError: the first check that fails.
    """
    checks.training("rwr", "rwr/make_optimizer")(context)
    reference, watch, start = (
        context.settings[f"rwr.{name}"] for name in ("reference", "watch", "params_from")
    )
    if reference not in ("copy", "stored"):
        raise UserError(f'rwr.reference = {reference!r}: expected "copy" or "stored"')
    if watch not in _WATCHED:
        raise UserError(f"rwr.watch = {watch!r}: expected one of {', '.join(_WATCHED)}")
    if start is not None:
        pretrained.parameters_from("rwr.params_from", start)


def _pools(context: Context, index) -> dict[str, list[int]]:
    """Prefix -> numbers of its mined candidates, best first."""
    from onesug_jax.logs.mined import read_table

    table = read_table(context.work.mined, "pools")
    pools: dict[str, list[int]] = {}
    for prefix, query in zip(table["prefix"].to_pylist(), table["query"].to_pylist(), strict=True):
        pools.setdefault(prefix, []).append(index.find(query))
    return pools


def _blocks(path: str, indexed: Callable[[str], bool] | None) -> Iterator[dict[str, list]]:
    """The rows of a split that become examples: in training only those of indexed queries."""
    from onesug_jax.align.preferences import COLUMNS

    with open_parquet(path) as file:
        for batch in file.iter_batches(columns=list(COLUMNS)):
            block = {name: batch.column(name).to_pylist() for name in COLUMNS}
            if indexed is not None:
                mask = [indexed(query) for query in block["query"]]
                block = {
                    name: list(itertools.compress(values, mask)) for name, values in block.items()
                }
            yield block


def _batches(model: TrainedModel, split: str, behaviour: Behaviour, task: str):
    """Preference lists of one split as the arrays of `align.rwr`."""
    import numpy as np

    from onesug_jax.tasks.examples import Examples
    from onesug_jax.tasks.list_batches import ListBatches

    work, featurizer = model.work, model.featurizer
    examples = Examples.load(work.examples, task, split, fetch=fetch)
    # Tasks on semantic ids have no examples for dev rows whose query has no id.
    indexed = behaviour.query >= 0
    example_of = (
        np.arange(len(indexed)) if len(examples) == len(indexed) else np.cumsum(indexed) - 1
    )
    if len(examples) not in (len(indexed), np.sum(indexed)):
        raise UserError(
            f"{examples.folder} holds {len(examples):,} examples, {work.rewards} {len(indexed):,} "
            "rows of the same split; run examples and rewards again."
        )
    if task.endswith("request_to_id"):

        def target(number: int) -> np.ndarray:
            return featurizer.id_tokens(model.ids.of(number))
    else:
        queries = model.completions.queries

        def target(number: int) -> np.ndarray:
            return featurizer.target(queries[number])

    return ListBatches(
        examples,
        example_of,
        target,
        np.load(os.path.join(work.rewards, REWARDS_FILE), mmap_mode="r"),
        input_length=featurizer.spec.input_length,
        target_length=featurizer.spec.target_length,
        soft_dim=model.config.soft_dim,
    )


def rwr(
    context: Context,
    *,
    steps: int = 400,
    batch_size: int = 32,
    accumulation: int = 1,
    log_every: int = 50,
    checkpoint_every: int = 200,
    evaluate_every: int = 100,
    dev_rows: int = 1000,
    dev_lists: int = 512,
    watch: str = "value",
    patience: int = 3,
    least_gain: float | None = 0.1,
    reference: str = "copy",
    params_from: str | None = None,
    profile_steps: tuple[int, int] | None = None,
) -> None:
    """Trains the preference-aligned model from the one in WORK_DIR/pretrain, into WORK_DIR/rwr.

    Args:
      steps, batch_size: updates, and preference lists per update; no model is written if steps = 0.
      evaluate_every: in updates; the model then writes lists for the first `dev_rows` rows of the
        dev split, and preference metrics are computed on `dev_lists` lists of that split.
      watch: the metric of those lists that selects the best parameters: "mrr@16", "order_mrr@16",
        or "value", the mean of both. For a model with items it is their lower bound: two standard
        errors of the difference to the initial model below it. After `patience` evaluations without
        a new best it stops.
      least_gain: write no model if no evaluation beats the initial model's `watch` by this many
        points, since a smaller difference may be chance; the model of the pretrain stage then stays
        in use. None: always write one.
      reference: "copy" holds the frozen model in memory; "stored" (text models only) stores its
        log-probabilities on the disk.
      params_from: another model's folder, local or in a bucket, as initial model and reference.
      profile_steps: (first, last) updates to trace into WORK_DIR/rwr/profile.

    Raises:
      UserError: nothing to prefer (a single query), a model trained on other tasks, a model with
        items but without candidate tokens, or a stored reference for a model with items.
    """
    from onesug_jax.align import rwr as preference
    from onesug_jax.train import loop
    from onesug_jax.train.checkpoint import load_params
    from onesug_jax.train.compiler import cache_programs
    from onesug_jax.train.mesh import process_batch_shard
    from onesug_jax.train.train_state import abstract_state, shardings_of

    # A training that continues starts with a copy of the finished one's file.
    pathlib.Path(context.work.rwr, trained.MODEL_FILE).unlink(missing_ok=True)
    if not steps:
        print("rwr.steps = 0: the pretrain stage's model stays the one in use", flush=True)
        return
    cache_programs(context.compiled)
    if params_from is not None:
        params_from = pretrained.parameters_from("rwr.params_from", params_from)
    work, model = context.work, TrainedModel(context, "pretrain")
    config, stored = model.config, model.stored
    if model.spec.items and not config.writes_candidates:
        raise UserError(
            f"{work.pretrain}: the model has no candidate tokens (ModelConfig.candidate_tokens = "
            "False), which rwr scores; keep it as it is with --gin.rwr.steps=0"
        )
    if model.spec.items and reference != "copy":
        raise UserError(
            f"rwr.reference = {reference!r}: a model with items has its reference in memory; "
            'expected "copy"'
        )
    objective = context.configured("PreferenceConfig")()
    mesh = context.configured("make_mesh")()
    process_rows = process_batch_shard(mesh, batch_size)
    optimizer = context.configured("rwr/make_optimizer")(steps=steps)
    like = abstract_state(preference.rwr_stage(config, objective), optimizer, mesh).params
    source = work.pretrain if params_from is None else params_from
    pretrained.check_vocabulary("rwr.params_from", source, stored["vocabulary"])
    frozen = load_params(source, shardings_of(like))
    watched = evaluate_every and dev_rows
    watched = watched and os.path.exists(os.path.join(work.log, "dev.parquet"))
    tables = dev_metrics = None
    if model.spec.items:
        batch_at, summary, tables = prefer_candidates.lists(model, mesh, batch_size)
        if watched:
            dev_metrics = prefer_candidates.watched(model, mesh, tables, dev_rows, watch)
    else:
        batch_at, summary = _text_lists(model, mesh, batch_size)
        if watched:
            dev_metrics = _watch(model, objective, mesh, frozen, dev_rows, dev_lists)
    if reference == "stored":
        stamp = _stamp(context, source, batch_size, process_rows)
        path = os.path.join(work.rwr, f"reference.{distributed.place_among()[0]}.npz")
        batch_at = preference.stored_reference(path, config, frozen, batch_at, steps, mesh, stamp)
    print(
        f"{config.parameters():,} parameters; {summary}; {objective.loss}, beta {objective.beta}, "
        f"delta {objective.delta}, alpha {objective.alpha}",
        flush=True,
    )
    best = LOWER if model.spec.items else watch
    before = dev_metrics(frozen, 0) if dev_metrics else {}
    if before:
        figures = ", ".join(f"{name} {before[name]:.2f}" for name in ("hr@16", *_WATCHED))
        print(f"rwr: the model it starts from: {figures}", flush=True)
    result = loop.fit(
        preference.rwr_stage(config, objective, frozen if reference == "copy" else None, tables),
        batch_at=batch_at,
        batch_size=batch_size,
        mesh=mesh,
        optimizer=optimizer,
        steps=steps,
        seed=context.seed,
        folder=work.rwr,
        states=context.states,
        accumulation=accumulation,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        evaluate_every=evaluate_every,
        evaluate_fn=dev_metrics,
        best_metric=best if dev_metrics else None,
        patience=patience if dev_metrics else 0,
        params_from=frozen,
        identity=trained.identity(context, config, stored["vocabulary"]),
        settings=trained.noted(context),
        profile_steps=profile_steps,
        compiler_options=context.configured("compiler_options")(mesh),
    )
    if before and least_gain is not None:
        name = f"{best} bound of {watch}" if model.spec.items else watch
        if not improves(result.best_value, before[best], name, least_gain):
            return
    distributed.run_on_primary_and_broadcast(lambda: trained.leave_aligned(context, stored))


def _text_lists(
    model: TrainedModel, mesh, batch_size: int
) -> tuple[Callable[[int], Mapping[str, Any]], str]:
    """A text model's training data: step -> this process's shard of a batch; and its summary.

    Raises:
      UserError: nothing to prefer: a single query, or a model trained on other tasks.
    """
    from onesug_jax.align.preferences import Behaviour, Lists
    from onesug_jax.train.mesh import process_batch_shard

    context, work = model.context, model.work
    task, behaviour = _task(model.stored), Behaviour.load(work.rewards, "train")
    if behaviour.queries < 2:
        raise UserError(
            f"{work.rewards}: the log has a single query, so there is nothing to prefer it to; "
            "the pretrain stage's model is all that can be trained on this log."
        )
    lists = Lists(behaviour, context.configured("ListConfig")(), context.seed)
    batches = _batches(model, "train", behaviour, task)
    process_rows = process_batch_shard(mesh, batch_size)

    def batch_at(step: int) -> Mapping[str, Any]:
        return batches(*_part(lists(step, batch_size), process_rows))

    mix = [
        f"{name} {100 * drawn:.0f} % (asked {100 * asked:.0f})"
        for name, (asked, drawn) in lists.mix().items()
        if asked or drawn
    ]
    summary = (
        f"{len(behaviour):,} rows, lists of 1 + {lists.config.negatives}, shown by "
        f"{behaviour.shown_by}; negatives: {', '.join(mix)}"
    )
    return batch_at, summary


def _task(stored: Mapping[str, Any]) -> str:
    """The task with one request per log row that writes the row's query or its id."""
    tasks = list(stored["tasks"])
    for kind in ("_query", "_request_to_id"):
        for task in tasks:
            if task.endswith(kind):
                return task
    raise UserError(
        f"the pretrained model learnt {', '.join(tasks)}: preferences need a model that was "
        "trained on the kind `query` or `request_to_id` (gin: examples.tasks)"
    )


def _watch(model: TrainedModel, objective, mesh, frozen, dev_rows: int, dev_lists: int):
    """`(params, step)` -> preference metrics of `dev_lists` lists of the dev split, and metrics of
    the lists that the suggester writes for `dev_rows` rows.
    """
    import numpy as np

    from onesug_jax.align.preferences import Behaviour, ListConfig, Lists
    from onesug_jax.align.rewards import POSITIVE
    from onesug_jax.align.rwr import make_measure
    from onesug_jax.train.mesh import divisible_batch, process_batch_shard

    work = model.work
    behaviour = Behaviour.load(work.rewards, "dev")
    lists = Lists(behaviour, ListConfig(), model.context.seed)
    usable = np.flatnonzero((behaviour.query >= 0) & np.isin(behaviour.level, POSITIVE))
    drawn = lists.of(usable[:dev_lists])
    to_arrays = _batches(model, "dev", behaviour, _task(model.stored))
    block, fixed = divisible_batch(mesh, 64), []
    process_rows = process_batch_shard(mesh, block)
    for start in range(0, len(drawn.rows), block):
        arrays = to_arrays(*_part(drawn, slice(start, start + block)))
        padding = (0, block - len(arrays["levels"]))
        filled = {n: np.pad(x, [padding] + [(0, 0)] * (x.ndim - 1)) for n, x in arrays.items()}
        fixed.append({name: array[process_rows] for name, array in filled.items()})
    measure = make_measure(model.config, objective, mesh)
    dev = os.path.join(work.log, "dev.parquet")
    scores_of = scoring.watch_lists(model, dev, work.log, dev_rows)

    def dev_metrics(params, step: int) -> dict[str, Any]:
        scores, lists = scores_of(params)
        return {**scoring.judged(scores), **measure(params, frozen, fixed), "lists": lists}

    return dev_metrics


def _part(drawn: Drawn, chosen: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, numbers and levels of some of the lists."""
    return drawn.rows[chosen], drawn.numbers[chosen], drawn.levels[chosen]


def _stamp(context: Context, source: str, batch_size: int, rows: np.ndarray) -> str:
    """The fingerprint of everything that stored log-probabilities depend on."""
    settings = {k: v for k, v in context.settings.items() if k.startswith("ListConfig")}
    start = os.path.join(source, trained.parameters(source))
    files = {name: fingerprint_file(os.path.join(start, name)) for name in names_below(start)}
    return fingerprint(files, context.seed, batch_size, rows, settings)
