"""The stages of the command line, in the order of the road from a raw log to a suggestion list.

Each stage is a short function that joins library parts (taken configured from its Context) and a
`StageSpec` that says what it reads, fills and depends on. What a part does is told in its own file;
imports stand inside the functions, so that no stage loads what only another one needs.

To add a stage: write its function, add its `StageSpec` to STAGES, and name in CONFIGURABLES
whatever of it may be set by --gin.NAME=VALUE.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from typing import TYPE_CHECKING

from onesug_jax.errors import UserError
from onesug_jax.registry import Context, StageSpec

if TYPE_CHECKING:
    from onesug_jax.decode.suggester import Suggester
    from onesug_jax.logs.completion import CompletionIndex

# What can be configured: name -> where it stands. Imported only by stages that declare it.
CONFIGURABLES = {
    "simulate": "onesug_jax.logs.simulate:simulate",
    "ingest": "onesug_jax.logs.ingest:ingest",
    "ModelConfig": "onesug_jax.model.config:ModelConfig",
    "make_mesh": "onesug_jax.train.mesh:make_mesh",
    "make_optimizer": "onesug_jax.train.optimizer:make_optimizer",
    "vocab": "onesug_jax.stages:vocab",
    "FeatureSpec": "onesug_jax.tasks.features:FeatureSpec",
    "examples": "onesug_jax.stages:examples",
    "Loader": "onesug_jax.tasks.loader:Loader",
    "pretrain": "onesug_jax.stages:pretrain",
    "BeamConfig": "onesug_jax.decode.beam:BeamConfig",
    "suggester": "onesug_jax.stages:suggester",
    "SliceSpec": "onesug_jax.evaluate.evaluator:SliceSpec",
    "evaluate": "onesug_jax.stages:evaluate",
}
SPLITS = ("train", "dev", "test")
MODEL_FILE = "model.json"  # beside a checkpoint: what it takes to use it


def doctor(context: Context) -> int:
    """Prints versions, devices, memory and what is missing; 1 when something required is."""
    from onesug_jax.doctor import report

    return report(context.work.path, imports=context.options.imports)


def _doctor_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--imports",
        action="store_true",
        help="also check that the large packages import together (takes some seconds)",
    )


def simulate(context: Context) -> None:
    """A simulated shop's log into WORK_DIR/simulated."""
    context.configured("simulate")(out=context.work.simulated)


def ingest(context: Context) -> None:
    """The log into WORK_DIR/log, in the schema, split and normalised."""
    context.configured("ingest")(log=context.log, out=context.work.log)


def mine(context: Context) -> None:
    """How often each query of the train split was searched, into WORK_DIR/mined."""
    from onesug_jax.logs.completion import CompletionIndex

    index = CompletionIndex.from_log(os.path.join(context.work.log, "train.parquet"))
    index.save(context.work.mined)
    print(f"{len(index):,} queries, searched {int(index.counts.sum()):,} times")


def vocab(
    context: Context,
    *,
    pieces: int = 4096,
    weighted: bool = True,
    sid_levels: int = 4,
    sid_codes: int = 512,
) -> None:
    """The id space, from the train split's queries, into WORK_DIR/vocab.

    `weighted` counts a query as often as it was searched, which keeps popular ones short; without
    it every query counts once. Choose that where words are not parted by spaces: popular queries
    would become single pieces that share nothing with what is typed on the way to them.
    """
    from onesug_jax.tasks.vocabulary import Vocabulary

    texts = _train_queries(context.work.log) if weighted else iter(_completions(context).queries)
    vocabulary = Vocabulary.train(
        texts,
        context.work.vocab,
        pieces=pieces,
        sid_levels=sid_levels,
        sid_codes=sid_codes,
        seed=context.seed,
    )
    print(
        f"{vocabulary.size:,} ids: {vocabulary.pieces:,} pieces, {sid_levels} x {sid_codes} "
        "semantic-id tokens, separators, padding"
    )


def _train_queries(log: str):
    """Every searched query of the train split, in the log's order."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(os.path.join(log, "train.parquet")) as file:
        for batch in file.iter_batches(columns=["query"]):
            yield from batch.column(0).to_pylist()


def examples(
    context: Context, *, mixture: str = "onesug", tasks: dict[str, float] | None = None
) -> None:
    """Fixed examples of a SeqIO mixture, into WORK_DIR/examples.

    `mixture` names the one of this project, made of `tasks` (kind -> rate), or any other in
    SeqIO's registry that a gin file's `import` has registered.
    """
    from onesug_jax.tasks import examples as cache
    from onesug_jax.tasks.vocabulary import Vocabulary

    vocabulary = Vocabulary.load(context.work.vocab)
    spec = context.configured("FeatureSpec")()
    splits = _splits(context.work.log)
    if mixture == "onesug":
        related = cache.completions(_completions(context), spec.related)
        cache.build_examples(
            context.work.examples,
            splits=splits,
            vocabulary=vocabulary,
            spec=spec,
            related=related,
            tasks=tasks,
        )
    else:
        cache.cache_mixture(
            mixture,
            context.work.examples,
            splits=tuple(splits),
            lengths={"inputs": spec.input_length, "targets": spec.target_length},
            vocabulary=vocabulary,
        )
    with open(os.path.join(context.work.examples, "features.json"), "w") as file:
        json.dump(dataclasses.asdict(spec), file, indent=2)


def _splits(log: str) -> dict[str, str]:
    """The splits that are there: name -> file."""
    paths = {split: os.path.join(log, f"{split}.parquet") for split in SPLITS}
    return {split: path for split, path in paths.items() if os.path.exists(path)}


def _completions(context: Context) -> CompletionIndex:
    from onesug_jax.logs.completion import CompletionIndex

    return CompletionIndex.load(context.work.mined)


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
    """The SFT model, into WORK_DIR/pretrain: next-token loss, best parameters by dev MRR@16.

    `evaluate_every` steps the model writes lists for the first `dev_rows` rows of the dev split
    (0: never, and the last parameters count).
    """
    from onesug_jax.align.pretrain import pretrain_stage
    from onesug_jax.tasks.loader import Loader
    from onesug_jax.tasks.vocabulary import Vocabulary
    from onesug_jax.train import loop
    from onesug_jax.train.mesh import batch_part

    _keep_compiled(context)
    work = context.work
    vocabulary = Vocabulary.load(work.vocab)
    with open(os.path.join(work.examples, "features.json")) as file:
        features = json.load(file)
    config = context.configured("ModelConfig")(vocab_size=vocabulary.size)
    mesh = context.configured("make_mesh")()
    index, count = batch_part(mesh)
    loader: Loader = context.configured("Loader")(
        work.examples,
        batch_size=batch_size,
        seed=context.seed,
        process_index=index,
        process_count=count,
        vocabulary=vocabulary.fingerprint,
    )
    print(f"{config.parameters():,} parameters; {loader.describe()}", flush=True)
    with open(os.path.join(work.pretrain, MODEL_FILE), "w") as file:
        model = {
            "model": dataclasses.asdict(config),
            "features": features,
            "vocabulary": vocabulary.fingerprint,
        }
        json.dump(model, file, indent=2)

    dev = os.path.join(work.log, "dev.parquet")
    watched = bool(evaluate_every and dev_rows and os.path.exists(dev))

    def dev_metrics(params, step: int) -> dict[str, float]:
        scores = _score(context, dev, context.work.log, params=params, limit=dev_rows)
        scores = scores.metrics["model"]["all"]
        return {name: scores[name] for name in ("hr@16", "mrr@16")}

    loop.fit(
        pretrain_stage(config),
        batch_at=loader.batch_at,
        mesh=mesh,
        optimizer=context.configured("make_optimizer")(steps=steps),
        steps=steps,
        seed=context.seed,
        folder=work.pretrain,
        accumulation=accumulation,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        evaluate_every=evaluate_every if watched else 0,
        evaluate_fn=dev_metrics if watched else None,
        best_metric="mrr@16" if watched else None,
        params_from=params_from,
        on_mismatch="restart",
        profile_steps=profile_steps,
    )


def _keep_compiled(context: Context) -> None:
    """Compiled programs stay in WORK_DIR/.compiled, unless JAX was told another place: the second
    `suggest` starts in seconds.
    """
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", context.work.join(".compiled"))


def _describe_pretrain(context: Context) -> str:
    """Shapes of the batch and of every parameter, with logical axes; nothing is computed."""
    import flax.linen as nn
    import jax

    from onesug_jax.align.pretrain import pretrain_stage
    from onesug_jax.tasks.vocabulary import VOCABULARY_FILE, Vocabulary

    spec = context.configured("FeatureSpec")()
    made = os.path.exists(os.path.join(context.work.vocab, VOCABULARY_FILE))
    if made:
        size = Vocabulary.load(context.work.vocab).size
    else:
        needed = context.settings["vocab.pieces"] + 8
        needed += context.settings["vocab.sid_levels"] * context.settings["vocab.sid_codes"]
        size = -(-needed // 128) * 128
    config = context.configured("ModelConfig")(vocab_size=size)
    batch = context.settings["pretrain.batch_size"]
    lines = [f"batch (at most; vocabulary {size:,}{'' if made else ', to be made'}):"]
    for name, length in (
        ("encoder_input_tokens", spec.input_length),
        ("decoder_input_tokens", spec.target_length),
        ("decoder_target_tokens", spec.target_length),
        ("decoder_loss_weights", spec.target_length),
    ):
        lines.append(f"  {name:<44} [{batch}, {length}]")
    lines.append("parameters:")
    boxed = jax.eval_shape(pretrain_stage(config).init_fn, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(
        boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    )
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape, axes = list(leaf.value.shape), ", ".join(leaf.names)
        lines.append(f"  {name:<44} {str(shape):<22} {leaf.value.size:>13,}  ({axes})")
    lines.append(f"  in all {config.parameters():,}")
    flops = config.flops_per_example(spec.input_length, spec.target_length)
    lines.append(f"  {3 * flops / 1e9:,.2f} GFLOP a training example of full length")
    return "\n".join(lines)


def suggester(
    context: Context, *, closed: bool = True, must_start: bool = True, params=None
) -> Suggester:
    """The trained model of WORK_DIR, ready to write lists.

    `closed` keeps lists to queries of the train split, `must_start` to those that start with the
    prefix wherever one does; `params` stands in for the stored parameters.
    """
    from onesug_jax.decode.suggester import Suggester
    from onesug_jax.model.config import ModelConfig
    from onesug_jax.model.seq2seq import Seq2Seq
    from onesug_jax.tasks.features import FeatureSpec, Featurizer
    from onesug_jax.tasks.vocabulary import Vocabulary
    from onesug_jax.train.checkpoint import load_params

    path = os.path.join(context.work.pretrain, MODEL_FILE)
    with open(path) as file:
        stored = json.load(file)
    vocabulary = Vocabulary.load(context.work.vocab)
    if vocabulary.fingerprint != stored["vocabulary"]:
        raise UserError(
            f"{path} belongs to vocabulary {stored['vocabulary']}, but {context.work.vocab} holds "
            f"{vocabulary.fingerprint}: run the pretrain stage again"
        )
    _keep_compiled(context)
    index = _completions(context)
    counts = dict(zip(index.queries, index.counts.tolist(), strict=True))
    return Suggester(
        Seq2Seq(ModelConfig(**{**stored["model"], "dropout": 0.0})),
        load_params(context.work.pretrain) if params is None else params,
        Featurizer(vocabulary, FeatureSpec(**stored["features"])),
        context.configured("BeamConfig")(),
        queries=counts if closed else None,
        must_start=must_start,
    )


def _score(context: Context, split: str, *logs: str, params=None, limit: int | None = None):
    """Scores one file of a log with the model and its rivals; `logs` are folders of history.

    With `limit`, its first rows and the model alone (training watches itself so).
    """
    from onesug_jax.evaluate import baselines, evaluator
    from onesug_jax.logs.history import with_history

    model = context.configured("suggester")(context, params=params)
    spec = model.featurizer.spec
    index = _completions(context)
    files = dict.fromkeys(path for log in logs for path in _splits(log).values())
    rows = with_history(list(files), keep=split, history=spec.history)
    lists = {"model": model, "most_popular": baselines.MostPopular(index).suggest}
    if limit is not None:
        table = rows.read_all().slice(0, limit)
        rows, lists = table.to_batches(), {"model": model}
    return evaluator.evaluate(
        rows,
        lists,
        prefix_counts=evaluator.prefix_counts(os.path.join(context.work.log, "train.parquet")),
        related=index.complete,
        related_k=spec.related,
        known=len(index),
        slices=context.configured("SliceSpec")(),
    )


def evaluate(context: Context, *, split: str = "dev") -> None:
    """Model and most popular completion on a split, into WORK_DIR/report.

    With a LOG other than the one WORK_DIR was made from, that log is scored: its `split` where it
    has one, else all of it, with the histories of both.
    """
    from onesug_jax.evaluate import report

    work, log = context.work, context.work.log
    logs = [log]
    if context.named and context.macros["LOG"] and not _made_from(context, context.log):
        log = os.path.join(work.report, "log")
        context.configured("ingest")(log=context.log, out=log, dev_days=0.0, test_days=0.0)
        logs.append(log)
        split = split if split in _splits(log) else next(iter(_splits(log)))
    path = os.path.join(log, f"{split}.parquet")
    if not os.path.exists(path):
        raise UserError(
            f"evaluate.split = {split!r}: {log} holds {', '.join(_splits(log))}; choose one of them"
        )
    scores = _score(context, path, *logs)
    curves = {"pretrain": os.path.join(work.pretrain, "metrics.jsonl")}
    report.write_report(scores, work.report, learning_curves=curves)
    _show_report(context)


def _made_from(context: Context, log: str) -> bool:
    """Whether WORK_DIR/log was ingested from these very files, wherever they lie now."""
    from onesug_jax import workdir

    made = workdir.Manifest.read(context.work.log)
    found = {workdir.fingerprint(path) for path in context.work.expand(log).values()}
    return made is not None and set(made.inputs.values()) == found


def _scored(context: Context) -> tuple[str, ...]:
    """What an evaluation reads; a log named to `evaluate` is part of it."""
    params = "best" if os.path.isdir(os.path.join(context.work.pretrain, "best")) else "checkpoints"
    own = (context.log,) if context.named and context.macros["LOG"] else ()
    model = ("pretrain/model.json", f"pretrain/{params}")
    return ("log/*.parquet", "mined/*", "vocab/*", *model, *own)


def _show_report(context: Context) -> None:
    from onesug_jax.evaluate import report

    metrics = report.read_metrics(context.work.report)
    print(f"\n{report.format_headline(metrics)}\n\n{report.format_slices(metrics)}\n")
    print(f"figures and plots: {context.work.report}", flush=True)


def suggest(context: Context) -> None:
    """Suggestions for --prefix, or for whatever is typed at a prompt."""
    options = context.options
    model = context.configured("suggester")(context)
    index = _completions(context)
    if options.prefix is not None:
        _answer(model, index, options.prefix, options)  # compiles; what is timed is the answer
        _print_suggestions(_answer(model, index, options.prefix, options), options.json)
        return
    _prompt(model, index, options)


def _answer(model: Suggester, index: CompletionIndex, prefix: str, options) -> dict:
    """Suggestions for what was typed, as the JSON object that --json prints."""
    import time

    from onesug_jax.logs.schema import normalise_prefix, normalise_query
    from onesug_jax.tasks.features import Request

    began = time.perf_counter()
    history = [normalise_query(query) for query in reversed(options.history)]
    prefix = normalise_prefix(prefix)
    request = Request(
        prefix=prefix,
        history=[query for query in dict.fromkeys(history) if query],
        related=index.complete(prefix, model.featurizer.spec.related),
        profile=options.profile,
    )
    found = model.suggest([request], options.k)[0]
    return {
        "prefix": prefix,
        "history": list(request.history),
        "suggestions": [dataclasses.asdict(suggestion) for suggestion in found],
        "milliseconds": round(1000 * (time.perf_counter() - began), 1),
    }


def _print_suggestions(answer: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer, ensure_ascii=False), flush=True)
        return
    after = f" after {', '.join(answer['history'])}" if answer["history"] else ""
    print(f"{answer['prefix']!r}{after}:")
    for place, suggestion in enumerate(answer["suggestions"], 1):
        print(f"  {place:>2}  {suggestion['text']:<48} {suggestion['score']:8.3f}")
    print(f"  in {answer['milliseconds']} ms", flush=True)


def _prompt(model: Suggester, index: CompletionIndex, options) -> None:
    """Reads prefixes until the end of input; a line `=query` is a search, which is remembered."""
    print("Type a prefix and press enter; =query adds a search to the history; ctrl-D ends.")
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        if line.startswith("="):
            options.history = [*options.history, line[1:]]
            print(f"history, oldest first: {', '.join(options.history)}")
            continue
        _print_suggestions(_answer(model, index, line, options), options.json)


def _suggest_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prefix", help="what was typed; without it, an interactive prompt")
    parser.add_argument(
        "--history", action="append", default=[], help="an earlier query, oldest first; repeat"
    )
    parser.add_argument(
        "--profile", action="append", default=[], help="a static profile value; repeat"
    )
    parser.add_argument("--k", type=int, default=None, help="how many suggestions (default 16)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a request")


_ALL = (
    StageSpec(
        name="doctor",
        summary="print versions, devices, memory, and what is missing with its mend",
        run=doctor,
        flags=_doctor_flags,
        in_run=False,
        example="doctor --gin.WORK_DIR=work/quickstart",
    ),
    StageSpec(
        name="simulate",
        summary="make a simulated shop's suggestion log",
        run=simulate,
        folder="simulated",
        configures=("simulate",),
        packages=("numpy", "pyarrow"),
        example="simulate --gin.WORK_DIR=work/shop --gin.simulate.requests=1_000_000",
    ),
    StageSpec(
        name="ingest",
        summary="read a log, set bad rows aside, normalise and split it",
        run=ingest,
        folder="log",
        inputs=lambda context: (context.log,),
        configures=("ingest",),
        ignores=("ingest.memory_limit",),
        packages=("numpy", "pyarrow", "duckdb"),
        example="ingest --gin.WORK_DIR=work/mine --gin.LOG=my_log.parquet",
    ),
    StageSpec(
        name="mine",
        summary="count what is searched: the popularity behind completions",
        run=mine,
        folder="mined",
        inputs=lambda context: ("log/train.parquet",),
        packages=("numpy", "pyarrow"),
        example="mine --gin.WORK_DIR=work/mine",
    ),
    StageSpec(
        name="vocab",
        summary="learn the text pieces and lay out the id space",
        run=vocab,
        folder="vocab",
        inputs=lambda context: ("log/train.parquet", "mined/*"),
        configures=("vocab",),
        packages=("sentencepiece", "pyarrow"),
        example="vocab --gin.WORK_DIR=work/mine --gin.vocab.pieces=8192",
    ),
    StageSpec(
        name="examples",
        summary="turn the log into fixed examples through SeqIO tasks",
        run=examples,
        folder="examples",
        inputs=lambda context: ("log/*.parquet", "mined/*", "vocab/*"),
        configures=("examples", "FeatureSpec"),
        packages=("numpy", "seqio", "tensorflow"),
        example="examples --gin.WORK_DIR=work/mine --gin.FeatureSpec.history=5",
    ),
    StageSpec(
        name="pretrain",
        summary="train the encoder-decoder on what people searched",
        run=pretrain,
        folder="pretrain",
        inputs=lambda context: ("examples/*", "examples/*/train/*", "vocab/*"),
        configures=(
            "pretrain",
            "ModelConfig",
            "make_optimizer",
            "Loader",
        ),
        ignores=(
            "make_mesh",
            "pretrain.log_every",
            "pretrain.profile_steps",
            "FeatureSpec",  # of the examples; here and `vocab` only for --dry_run
            "vocab",
            "BeamConfig",  # how dev lists are written while training: no reason to train again
            "suggester",
            "SliceSpec",
        ),
        packages=("jax", "flax", "optax", "numpy"),
        resumable=True,
        describe=_describe_pretrain,
        example="pretrain --gin.WORK_DIR=work/mine --gin.MODEL=small --gin.STEPS=20_000",
    ),
    StageSpec(
        name="evaluate",
        summary="score the model beside most popular completion",
        run=evaluate,
        folder="report",
        inputs=_scored,
        configures=("evaluate", "BeamConfig", "suggester", "SliceSpec"),
        ignores=("ingest",),
        packages=("jax", "numpy"),
        recap=_show_report,
        always=True,
        example="evaluate --gin.WORK_DIR=work/mine --gin.LOG=newest_day.parquet",
    ),
    StageSpec(
        name="suggest",
        summary="show suggestions for a typed prefix",
        run=suggest,
        inputs=lambda context: ("pretrain/model.json", "vocab/*", "mined/*"),
        configures=("BeamConfig", "suggester"),
        flags=_suggest_flags,
        in_run=False,
        example='suggest --gin.WORK_DIR=work/mine --prefix "lego st" --history "duplo"',
    ),
    StageSpec(
        name="run",
        summary="all of it: every stage in order, skipping what is up to date and saying why not",
        run=lambda context: 0,  # main runs the others
        in_run=False,
        example="run --gin_file=gin_configs/quickstart.gin --gin.WORK_DIR=work/quickstart",
    ),
)
STAGES = {spec.name: spec for spec in _ALL}
