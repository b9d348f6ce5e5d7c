"""The stages of preference alignment: rewards of people's behaviour, and learning from them."""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from onesug_jax.errors import UserError
from onesug_jax.files import fingerprint, fingerprint_file, names_below, write_json
from onesug_jax.pipeline.mirror import fetch
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import split_files
from onesug_jax.stages import checks, prefer_candidates, pretrained, scoring, trained
from onesug_jax.stages.parts import Parts
from onesug_jax.stages.prefer_candidates import REWARDS_FILE
from onesug_jax.stages.trained_model import TrainedModel
from onesug_jax.stages.watch import beats
from onesug_jax.train import distributed

if TYPE_CHECKING:
    import numpy as np

    from onesug_jax.align.preferences import Behaviour, Drawn

_SPLITS = ("train", "dev")
_WATCHED = ("mrr@16", "order_mrr@16", "value")


def rewards(context: Context) -> None:
    """What people did with every row, and each query's reward at each behaviour level, into
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
    """Settings of `rwr` that cannot hold, and the folder that it would start from.

    Raises:
      UserError: the first of them.
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
    """Numbers of the mined candidates of every prefix, best first."""
    from onesug_jax.logs.mined import read_table

    table = read_table(context.work.mined, "pools")
    found: dict[str, list[int]] = {}
    for prefix, query in zip(table["prefix"].to_pylist(), table["query"].to_pylist(), strict=True):
        found.setdefault(prefix, []).append(index.find(query))
    return found


def _blocks(path: str, indexed: Callable[[str], bool] | None) -> Iterator[dict[str, list]]:
    """The rows of a split as the examples stage takes them: in training, indexed queries only."""
    import pyarrow.parquet as pq

    from onesug_jax.align.preferences import COLUMNS

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=list(COLUMNS)):
            block = {name: batch.column(name).to_pylist() for name in COLUMNS}
            if indexed is not None:
                keep = [indexed(query) for query in block["query"]]
                block = {
                    name: list(itertools.compress(values, keep)) for name, values in block.items()
                }
            yield block


def _batches(model: TrainedModel, split: str, behaviour: Behaviour, task: str):
    """Preference lists of one split as the arrays of `align.rwr`."""
    import numpy as np

    from onesug_jax.tasks.examples import Examples
    from onesug_jax.tasks.list_batches import ListBatches

    work, featurizer = model.work, model.featurizer
    examples = Examples.load(work.examples, task, split, fetch=fetch)
    # Tasks on semantic ids leave out the rows of dev that ended in a query without one.
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
    only_if_better: bool = True,
    reference: str = "copy",
    params_from: str | None = None,
    profile_steps: tuple[int, int] | None = None,
) -> None:
    """The preference-aligned model, into WORK_DIR/rwr, from the one in WORK_DIR/pretrain.

    Args:
      steps, batch_size: updates, and preference lists in each; without any update no model is left.
      evaluate_every: in updates; the model then writes lists for the first `dev_rows` rows of the
        dev split, and preference metrics are taken of `dev_lists` lists of that split.
      watch: the figure of those lists that chooses the best parameters: "mrr@16", "order_mrr@16",
        or "value", the mean of both. After `patience` evaluations without a better one it stops.
      only_if_better: where no evaluation beats the model that training started from, leave no
        model: the pretrain stage's stays the one in use.
      reference: "copy" holds the frozen model in memory, "stored" its log-probabilities on disk
        (of the text model alone).
      params_from: another model's folder, here or in a bucket, to start from and to hold as
        reference.
      profile_steps: (first, last) updates to trace into WORK_DIR/rwr/profile.

    Raises:
      UserError: nothing to prefer: a single query, or a model trained on other tasks; a stored
        reference of a model with items.
    """
    from onesug_jax.align import rwr as preference
    from onesug_jax.train import loop
    from onesug_jax.train.checkpoint import load_params
    from onesug_jax.train.compiler import cache_programs
    from onesug_jax.train.mesh import process_batch_shard
    from onesug_jax.train.train_state import abstract_state, shardings_of

    # That of the training that goes on.
    pathlib.Path(context.work.rwr, trained.MODEL_FILE).unlink(missing_ok=True)
    if not steps:
        print("rwr.steps = 0: the pretrain stage's model stays the one in use", flush=True)
        return
    cache_programs(context.compiled)
    if params_from is not None:
        params_from = pretrained.parameters_from("rwr.params_from", params_from)
    work, model = context.work, TrainedModel(context, "pretrain")
    config, stored = model.config, model.stored
    if model.spec.items and reference != "copy":
        raise UserError(
            f"rwr.reference = {reference!r}: a model with items has its reference in memory; "
            'expected "copy"'
        )
    objective = context.configured("PreferenceConfig")()
    mesh = context.configured("make_mesh")()
    mine = process_batch_shard(mesh, batch_size)
    optimizer = context.configured("rwr/make_optimizer")(steps=steps)
    like = abstract_state(preference.rwr_stage(config, objective), optimizer, mesh).params
    source = work.pretrain if params_from is None else params_from
    pretrained.check_vocabulary("rwr.params_from", source, stored["vocabulary"])
    frozen = load_params(source, shardings_of(like))
    watched = evaluate_every and dev_rows
    watched = watched and os.path.exists(os.path.join(work.log, "dev.parquet"))
    tables = dev_metrics = None
    if model.spec.items:
        batch_at, said, tables = prefer_candidates.lists(model, mesh, batch_size)
        if watched:
            dev_metrics = prefer_candidates.watched(model, mesh, tables, dev_rows)
    else:
        batch_at, said = _text_lists(model, mesh, batch_size)
        if watched:
            dev_metrics = _watch(model, objective, mesh, frozen, dev_rows, dev_lists)
    if reference == "stored":
        stamp = _stamp(context, source, batch_size, mine)
        path = os.path.join(work.rwr, f"reference.{distributed.place_among()[0]}.npz")
        batch_at = preference.stored_reference(path, config, frozen, batch_at, steps, mesh, stamp)
    print(
        f"{config.parameters():,} parameters; {said}; {objective.loss}, beta {objective.beta}, "
        f"delta {objective.delta}, alpha {objective.alpha}",
        flush=True,
    )
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
        best_metric=watch if dev_metrics else None,
        patience=patience if dev_metrics else 0,
        params_from=frozen,
        identity=trained.identity(context, config, stored["vocabulary"]),
        profile_steps=profile_steps,
        compiler_options=context.configured("compiler_options")(mesh),
    )
    if before and only_if_better and not beats(result.best_value, before[watch], watch):
        return
    distributed.run_on_primary_and_broadcast(lambda: trained.leave_aligned(context, stored))


def _text_lists(
    model: TrainedModel, mesh, batch_size: int
) -> tuple[Callable[[int], Mapping[str, Any]], str]:
    """What a text model learns from: step -> this process's part of a batch, and that in words.

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
    mine = process_batch_shard(mesh, batch_size)

    def batch_at(step: int) -> Mapping[str, Any]:
        return batches(*_part(lists(step, batch_size), mine))

    mix = [
        f"{name} {100 * drawn:.0f} % (asked {100 * asked:.0f})"
        for name, (asked, drawn) in lists.mix().items()
        if asked or drawn
    ]
    said = (
        f"{len(behaviour):,} rows, lists of 1 + {lists.config.negatives}, shown by "
        f"{behaviour.shown_by}; negatives: {', '.join(mix)}"
    )
    return batch_at, said


def _task(stored: Mapping[str, Any]) -> str:
    """The task that reads requests, one a row of the log, and writes their queries or ids."""
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
    """`(params, step)` -> preference metrics of `dev_lists` lists of the dev split, beside those of
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
    mine = process_batch_shard(mesh, block)
    for start in range(0, len(drawn.rows), block):
        arrays = to_arrays(*_part(drawn, slice(start, start + block)))
        room = block - len(arrays["levels"])
        fixed.append(
            {n: np.pad(x, [(0, room)] + [(0, 0)] * (x.ndim - 1))[mine] for n, x in arrays.items()}
        )
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
    """What stored log-probabilities depend on, in one word."""
    settings = {k: v for k, v in context.settings.items() if k.startswith("ListConfig")}
    start = os.path.join(source, trained.parameters(source))
    files = {name: fingerprint_file(os.path.join(start, name)) for name in names_below(start)}
    return fingerprint(files, context.seed, batch_size, rows, settings)
