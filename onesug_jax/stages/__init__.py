"""The stages of the command line, in the order of the road from a raw log to a suggestion list.

Each stage is a short function that joins library parts (taken configured from its Context) and a
`StageSpec` that says what it reads, fills and depends on. What a part does is told in its own file;
imports stand inside the functions, so that no stage loads what only another one needs.

To add a stage: write its function in a file beside this one, add its `StageSpec` to STAGES, and
name in CONFIGURABLES whatever of it may be set by --gin.NAME=VALUE.
"""

from __future__ import annotations

import argparse

from onesug_jax.registry import Context, StageSpec
from onesug_jax.stages import compile as compiling
from onesug_jax.stages import export, lists, log, opened, prefer, represent, texts, train, update

# What can be configured: name -> where it stands. Imported only by stages that declare it.
CONFIGURABLES = {
    "simulate": "onesug_jax.logs.simulate:simulate",
    "ingest": "onesug_jax.logs.ingest:ingest",
    "mine": "onesug_jax.logs.mining:mine",
    "align": "onesug_jax.represent.alignment:align",
    "EncoderSpec": "onesug_jax.represent.encoder:EncoderSpec",
    "quantize": "onesug_jax.represent.quantize:quantize",
    "RqVaeConfig": "onesug_jax.represent.rqvae:RqVaeConfig",
    "index": "onesug_jax.stages.represent:index",
    "rank": "onesug_jax.represent.rank_training:train_ranker",
    "EnhanceConfig": "onesug_jax.represent.enhance:EnhanceConfig",
    "SearchConfig": "onesug_jax.represent.tree_search:SearchConfig",
    "RelatedConfig": "onesug_jax.represent.related:RelatedConfig",
    "ModelConfig": "onesug_jax.model.config:ModelConfig",
    "make_mesh": "onesug_jax.train.mesh:make_mesh",
    "make_optimizer": "onesug_jax.train.optimizer:make_optimizer",
    "vocab": "onesug_jax.stages.texts:vocab",
    "FeatureSpec": "onesug_jax.tasks.features:FeatureSpec",
    "examples": "onesug_jax.stages.texts:examples",
    "Loader": "onesug_jax.tasks.loader:Loader",
    "pretrain": "onesug_jax.stages.train:pretrain",
    "rewards": "onesug_jax.stages.prefer:rewards",
    "RewardConfig": "onesug_jax.align.rewards:RewardConfig",
    "ListConfig": "onesug_jax.align.preferences:ListConfig",
    "PreferenceConfig": "onesug_jax.align.rwr:PreferenceConfig",
    "rwr": "onesug_jax.stages.prefer:rwr",
    "CascadeConfig": "onesug_jax.evaluate.cascade:CascadeConfig",
    "update": "onesug_jax.stages.update:update",
    "BeamConfig": "onesug_jax.decode.beam:BeamConfig",
    "ScoreConfig": "onesug_jax.decode.score:ScoreConfig",
    "suggester": "onesug_jax.stages.lists:suggester",
    "SliceSpec": "onesug_jax.evaluate.evaluator:SliceSpec",
    "evaluate": "onesug_jax.stages.lists:evaluate",
    "compile": "onesug_jax.stages.compile:compile_ahead",
}


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
        run=log.simulate,
        folder="simulated",
        configures=("simulate",),
        packages=("numpy", "pyarrow"),
        example="simulate --gin.WORK_DIR=work/shop --gin.simulate.requests=1_000_000",
    ),
    StageSpec(
        name="ingest",
        summary="read a log, set bad rows aside, normalise and split it",
        run=log.ingest,
        folder="log",
        inputs=lambda context: (context.log,),
        configures=("ingest",),
        ignores=("ingest.memory_limit",),
        packages=("numpy", "pyarrow", "duckdb"),
        example="ingest --gin.WORK_DIR=work/mine --gin.LOG=my_log.parquet",
    ),
    StageSpec(
        name="mine",
        summary="mine what is searched, typed, and searched together",
        run=log.mine,
        folder="mined",
        inputs=lambda context: ("log/train.parquet",),
        configures=("mine",),
        ignores=("mine.engine", "mine.memory_limit", "mine.scratch", "mine.spark_master"),
        packages=("numpy", "pyarrow", "ibis-framework", "duckdb"),
        example="mine --gin.WORK_DIR=work/mine --gin.mine.min_users=5",
    ),
    StageSpec(
        name="align",
        summary="align a text encoder with the mined pairs",
        run=represent.align,
        folder="encoder",
        inputs=lambda context: ("mined/*.parquet",),
        configures=("align", "EncoderSpec", "make_optimizer"),
        ignores=("make_mesh", "align.log_every", "align.checkpoint_every", "align.profile_steps"),
        packages=("jax", "flax", "optax", "tokenizers", "numpy"),
        together=True,
        resumable=True,
        example="align --gin.WORK_DIR=work/mine --gin.align.weights=minilm",
    ),
    StageSpec(
        name="quantize",
        summary="learn semantic ids and give every known query one",
        run=represent.quantize,
        folder="semantic_ids",
        inputs=lambda context: (*opened.ENCODER, "mined/*.npy", "mined/queries.txt"),
        configures=("quantize", "RqVaeConfig", "make_optimizer"),
        ignores=("make_mesh", "quantize.log_every"),
        packages=("jax", "flax", "optax", "numpy"),
        together=True,
        resumable=True,
        example="quantize --gin.WORK_DIR=work/mine --gin.quantize.method=rq_kmeans",
    ),
    StageSpec(
        name="index",
        summary="enhance the known prefixes and index what is related to them",
        run=represent.index,
        folder="index",
        inputs=lambda context: (*opened.ENCODER, *opened.IDS, "mined/*"),
        configures=("index", "EnhanceConfig", "SearchConfig"),
        packages=("jax", "numpy", "pyarrow"),
        example="index --gin.WORK_DIR=work/mine --gin.EnhanceConfig.weight=0.3",
    ),
    StageSpec(
        name="rank",
        summary="learn how the candidates of a prefix are ranked for a user",
        run=represent.rank,
        folder="ranking",
        inputs=lambda context: ("log/train.parquet", "mined/*", *opened.INDEX),
        configures=("rank", "RelatedConfig"),
        packages=("jax", "optax", "numpy", "pyarrow"),
        example="rank --gin.WORK_DIR=work/mine --gin.rank.steps=0",
    ),
    StageSpec(
        name="vocab",
        summary="learn the text pieces and lay out the id space",
        run=texts.vocab,
        folder="vocab",
        inputs=lambda context: (
            "log/train.parquet",
            "mined/*",
            *opened.pretrained(
                context, "vocab.pretrained", opened.SPIECE, "config.json", sure=True
            ),
        ),
        configures=("vocab",),
        packages=("sentencepiece", "pyarrow"),
        example="vocab --gin.WORK_DIR=work/mine --gin.vocab.pieces=8192",
    ),
    StageSpec(
        name="examples",
        summary="turn the log into fixed examples through SeqIO tasks",
        run=texts.examples,
        folder="examples",
        inputs=lambda context: ("log/*.parquet", "mined/*", "vocab/*", *opened.PRE),
        configures=("examples", "FeatureSpec", "RelatedConfig"),
        packages=("numpy", "seqio", "tensorflow"),
        example="examples --gin.WORK_DIR=work/mine --gin.FeatureSpec.history=5",
    ),
    StageSpec(
        name="pretrain",
        summary="train the encoder-decoder on what people searched",
        run=train.pretrain,
        folder="pretrain",
        inputs=lambda context: (
            "examples/*",
            "examples/*/train/*",
            "vocab/*",
            *opened.pretrained(
                context, "pretrain.params_from", "config.json", "model*.safetensors"
            ),
        ),
        configures=(
            "pretrain",
            "ModelConfig",
            "make_optimizer",
            "Loader",
        ),
        ignores=(
            "RelatedConfig",
            "make_mesh",
            "pretrain.log_every",
            "pretrain.profile_steps",
            "FeatureSpec",  # of the examples; here, `vocab` and `EncoderSpec` only for --dry_run
            "vocab",
            "EncoderSpec",
            "BeamConfig",  # how dev lists are written while training: no reason to train again
            "ScoreConfig",
            "suggester",
            "SliceSpec",
        ),
        packages=("jax", "flax", "optax", "numpy"),
        together=True,
        resumable=True,
        describe=train.describe_pretrain,
        example="pretrain --gin.WORK_DIR=work/mine --gin.MODEL=small --gin.STEPS=20_000",
    ),
    StageSpec(
        name="rewards",
        summary="weigh what people did with every suggestion list",
        run=prefer.rewards,
        folder="rewards",
        inputs=lambda context: ("log/*.parquet", "mined/*"),
        configures=("RewardConfig",),
        packages=("numpy", "pyarrow"),
        example="rewards --gin.WORK_DIR=work/mine --gin.RewardConfig.order=3.0",
    ),
    StageSpec(
        name="rwr",
        summary="align the model with what people preferred",
        run=prefer.rwr,
        folder="rwr",
        inputs=lambda context: (
            "rewards/*",
            "examples/*",
            "examples/*/train/*",
            "vocab/*",
            "pretrain/model.json",
            opened.parameters(context, "pretrain"),
        ),
        configures=("rwr", "ListConfig", "PreferenceConfig", "make_optimizer"),
        ignores=(
            "RelatedConfig",
            "make_mesh",
            "rwr.log_every",
            "rwr.profile_steps",
            "BeamConfig",  # how dev lists are written while training, as in pretrain
            "ScoreConfig",
            "suggester",
            "SliceSpec",
        ),
        packages=("jax", "flax", "optax", "numpy"),
        together=True,
        resumable=True,
        example="rwr --gin.WORK_DIR=work/mine --gin.PreferenceConfig.loss=softmax_dpo",
    ),
    StageSpec(
        name="cascade",
        summary="train the rival: recall, pre-rank and rank, one after another",
        run=lists.cascade,
        folder="cascade",
        inputs=lambda context: ("log/train.parquet", "mined/*", *opened.PRE),
        configures=("CascadeConfig", "RelatedConfig"),
        packages=("numpy", "lightgbm"),
        in_run=False,
        example="cascade --gin.WORK_DIR=work/mine",
    ),
    StageSpec(
        name="evaluate",
        summary="score the model beside most popular completion",
        run=lists.evaluate,
        folder="report",
        inputs=lists.scored,
        configures=(
            "evaluate",
            "BeamConfig",
            "ScoreConfig",
            "suggester",
            "SliceSpec",
            "RelatedConfig",
            "CascadeConfig",
        ),
        ignores=("ingest",),
        packages=("jax", "numpy"),
        recap=lists.show_report,
        together=True,
        always=True,
        published=True,
        example="evaluate --gin.WORK_DIR=work/mine --gin.LOG=newest_day.parquet",
    ),
    StageSpec(
        name="suggest",
        summary="show suggestions for a typed prefix",
        run=lists.suggest,
        inputs=lambda context: ("pretrain/model.json", "vocab/*", "mined/*", *opened.PRE),
        configures=("BeamConfig", "ScoreConfig", "suggester", "RelatedConfig"),
        flags=lists.suggest_flags,
        in_run=False,
        published=True,
        example='suggest --gin.WORK_DIR=work/mine --prefix "lego st" --history "duplo"',
    ),
    StageSpec(
        name="export",
        summary="write the model as a Hugging Face T5 folder",
        run=export.export,
        inputs=lambda context: ("pretrain/model.json", "vocab/*"),
        flags=export.flags,
        in_run=False,
        published=True,
        example="export --gin.WORK_DIR=work/mine --to exported",
    ),
    StageSpec(
        name="update",
        summary="learn from a fresh log: the next model, published if it is not worse",
        run=update.update,
        configures=(
            "update",
            "ingest",
            "BeamConfig",
            "ScoreConfig",
            "suggester",
            "SliceSpec",
            "RelatedConfig",
        ),
        ignores=("CascadeConfig",),
        flags=update.flags,
        in_run=False,
        example="update --gin.WORK_DIR=work/mine --gin.LOG=yesterday.parquet",
    ),
    StageSpec(
        name="compile",
        summary="compile every step for chips that are not here: does it fit, how fast could it be",
        run=compiling.compile_ahead,
        configures=(
            "compile",
            "ModelConfig",
            "FeatureSpec",
            "make_mesh",
            "make_optimizer",
            "pretrain",
            "rwr",
            "ListConfig",
            "PreferenceConfig",
            "align",
            "EncoderSpec",
            "BeamConfig",
        ),
        packages=("jax", "flax", "optax", "numpy"),
        flags=compiling.flags,
        in_run=False,
        example="compile --gin.MODEL=base --gin.BATCH_SIZE=4096 --topology=v5e:16x16",
    ),
    StageSpec(
        name="compare",
        summary="show the scores of several work directories side by side",
        run=lists.compare,
        flags=lists.compare_flags,
        in_run=False,
        example="compare --run work/ablations/full --run work/ablations/no_pre",
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
