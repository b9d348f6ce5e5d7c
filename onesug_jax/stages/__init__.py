"""The stages of the command line, in order, from a raw log to a suggestion list.

Each stage is a short function that joins library parts (taken configured from its Context) and a
`StageSpec` that says what it reads, fills and depends on. Each part is described in its own file.
Imports stand inside the functions, so that no stage loads what only another one needs.

To add a stage: write its function in a file beside this one, add its `StageSpec` to STAGES, and
name in CONFIGURABLES what --gin.NAME=VALUE may set of it.
"""

from __future__ import annotations

import argparse

from onesug_jax.pipeline.spec import Context, StageSpec
from onesug_jax.stages import (
    checks,
    comparing,
    evaluating,
    export,
    log,
    opened,
    prefer,
    represent,
    serving,
    suggesting,
    sweeping,
    texts,
    train,
    update,
)
from onesug_jax.stages import compile as compiling

# What can be configured: name -> where it stands. Imported only by stages that declare it.
CONFIGURABLES = {
    "simulate": "onesug_jax.logs.simulate:simulate",
    "Timeline": "onesug_jax.logs.simulate.timeline:Timeline",
    "ingest": "onesug_jax.logs.ingest:ingest",
    "clicks": "onesug_jax.logs.clicks:Clicks",
    "mine": "onesug_jax.logs.mining:mine",
    "align": "onesug_jax.text_encoder.alignment:align",
    "EncoderSpec": "onesug_jax.text_encoder.encoder:EncoderSpec",
    "quantize": "onesug_jax.semantic_ids.quantize:quantize",
    "RqVaeConfig": "onesug_jax.semantic_ids.rqvae:RqVaeConfig",
    "index": "onesug_jax.stages.represent:index",
    "EnhanceConfig": "onesug_jax.retrieval.enhance:EnhanceConfig",
    "SearchConfig": "onesug_jax.retrieval.tree_search:SearchConfig",
    "ModelConfig": "onesug_jax.model.config:ModelConfig",
    "make_mesh": "onesug_jax.train.mesh:make_mesh",
    "compiler_options": "onesug_jax.train.compiler:compiler_options",
    "make_optimizer": "onesug_jax.train.optimizer:make_optimizer",
    "vocab": "onesug_jax.stages.texts:vocab",
    "FeatureSpec": "onesug_jax.tasks.features:FeatureSpec",
    "examples": "onesug_jax.stages.texts:examples",
    "Loader": "onesug_jax.tasks.loader:Loader",
    "ItemLoader": "onesug_jax.tasks.item_loader:ItemLoader",
    "AsOfConfig": "onesug_jax.logs.asof.config:AsOfConfig",
    "pretrain": "onesug_jax.stages.train:pretrain",
    "rewards": "onesug_jax.stages.prefer:rewards",
    "RewardConfig": "onesug_jax.align.rewards:RewardConfig",
    "ListConfig": "onesug_jax.align.preferences:ListConfig",
    "PreferenceConfig": "onesug_jax.align.rwr:PreferenceConfig",
    "rwr": "onesug_jax.stages.prefer:rwr",
    "CascadeConfig": "onesug_jax.evaluate.cascade:CascadeConfig",
    "update": "onesug_jax.stages.update:update",
    "BeamConfig": "onesug_jax.decode.beam:BeamConfig",
    "WritingConfig": "onesug_jax.decode.both_ways:WritingConfig",
    "suggester": "onesug_jax.stages.lists:suggester",
    "SliceSpec": "onesug_jax.evaluate.evaluator:SliceSpec",
    "evaluate": "onesug_jax.stages.evaluating:evaluate",
    "EngineConfig": "onesug_jax.serve.config:EngineConfig",
    "ServerConfig": "onesug_jax.serve.server:ServerConfig",
    "FeedbackConfig": "onesug_jax.serve.feedback:FeedbackConfig",
    "compile": "onesug_jax.stages.compile:compile_ahead",
}


_WRITES_LISTS = ("WritingConfig", "BeamConfig", "suggester", "SliceSpec")


def doctor(context: Context) -> int:
    """Prints versions, devices, memory and what is missing; 1 when something required is."""
    from onesug_jax.doctor import report

    return report(context.work.path, imports=context.options.imports)


def _doctor_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--imports",
        action="store_true",
        help="also check that the large packages can be imported in one process (some seconds)",
    )


def _part(parser: argparse.ArgumentParser) -> None:
    names = [spec.name for spec in _ALL if spec.in_run]
    parser.add_argument(
        "--from",
        dest="first",
        choices=names,
        metavar="STAGE",
        help="the first stage to run; what is before it is there already (default: all)",
    )
    parser.add_argument(
        "--until",
        choices=names,
        metavar="STAGE",
        help="the last stage to run (default: to the end)",
    )


_ALL = (
    StageSpec(
        name="doctor",
        summary="print versions, devices, memory, and what is missing with its fix",
        run=doctor,
        flags=_doctor_flags,
        in_run=False,
        example="doctor --gin.WORK_DIR=work/quickstart",
    ),
    StageSpec(
        name="simulate",
        summary="make a simulated shop's suggestion log",
        run=log.simulate,
        check=log.check_simulate,
        folder="simulated",
        configures=("simulate", "Timeline"),
        example="simulate --gin.WORK_DIR=work/shop --gin.simulate.requests=1_000_000",
    ),
    StageSpec(
        name="ingest",
        summary="read a log, set bad rows aside, normalise and split it",
        run=log.ingest,
        check=log.check_ingest,
        folder="log",
        inputs=lambda context: (context.log,),
        configures=("ingest", "clicks"),
        ignores=("ingest.memory_limit",),
        example="ingest --gin.WORK_DIR=work/mine --gin.LOG=my_log.parquet",
    ),
    StageSpec(
        name="mine",
        summary="mine what is searched and typed, and related queries",
        run=log.mine,
        folder="mined",
        inputs=lambda context: ("log/train.parquet",),
        configures=("mine",),
        ignores=("mine.engine", "mine.memory_limit", "mine.scratch", "mine.spark_master"),
        example="mine --gin.WORK_DIR=work/mine --gin.mine.min_users=5",
    ),
    StageSpec(
        name="align",
        summary="align a text encoder with the mined pairs",
        run=represent.align,
        folder="encoder",
        inputs=lambda context: ("mined/*.parquet",),
        configures=("align", "EncoderSpec", "make_optimizer"),
        changeable=(
            "make_optimizer",
            *(f"align.{name}" for name in ("steps", "batch_size", "accumulation", "temperature")),
        ),
        ignores=("make_mesh", "align.log_every", "align.checkpoint_every", "align.profile_steps"),
        check=checks.training("align", "align/make_optimizer"),
        every_process=True,
        example="align --gin.WORK_DIR=work/mine --gin.align.weights=minilm",
    ),
    StageSpec(
        name="quantize",
        summary="learn semantic ids and give every indexed query one",
        run=represent.quantize,
        folder="semantic_ids",
        inputs=lambda context: (*opened.ENCODER, "mined/*"),
        configures=("quantize", "RqVaeConfig", "EnhanceConfig", "make_optimizer"),
        changeable=("make_optimizer", "quantize.steps", "quantize.batch_size"),
        ignores=("make_mesh", "quantize.log_every"),
        check=checks.training("quantize", "quantize/make_optimizer"),
        every_process=True,
        example="quantize --gin.WORK_DIR=work/mine --gin.quantize.method=rq_kmeans",
    ),
    StageSpec(
        name="index",
        summary="enhance the indexed prefixes and find their related queries",
        run=represent.index,
        folder="index",
        inputs=lambda context: (*opened.ENCODER, *opened.IDS, "mined/*"),
        configures=("index", "EnhanceConfig", "SearchConfig"),
        example="index --gin.WORK_DIR=work/mine --gin.EnhanceConfig.weight=0.3",
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
        example="vocab --gin.WORK_DIR=work/mine --gin.vocab.pieces=8192",
    ),
    StageSpec(
        name="examples",
        summary="turn the log into fixed examples, in shards",
        run=texts.examples,
        folder="examples",
        format=2,
        inputs=lambda context: ("log/*.parquet", "mined/*", "vocab/*", *opened.INDEX),
        configures=("examples", "FeatureSpec", "AsOfConfig"),
        example="examples --gin.WORK_DIR=work/mine --gin.FeatureSpec.history=5",
    ),
    StageSpec(
        name="pretrain",
        summary="train the encoder-decoder on what people searched",
        run=train.pretrain,
        folder="pretrain",
        inputs=lambda context: (
            "examples/*",
            "examples/*/train/*.json",
            "vocab/*",
            *opened.INDEX,
            *opened.pretrained(
                context, "pretrain.params_from", "config.json", "model*.safetensors"
            ),
        ),
        also_reads=opened.watched,
        configures=("pretrain", "ModelConfig", "make_optimizer", "Loader", "ItemLoader"),
        changeable=(
            "pretrain",
            "make_optimizer",
            "Loader",
            "ItemLoader",
            "SEED",
            *(f"ModelConfig.{name}" for name in ("dropout", "remat", "unroll", "dtype")),
        ),
        fixed=("pretrain.params_from",),
        ignores=(
            "make_mesh",
            "compiler_options",
            "pretrain.log_every",
            "pretrain.profile_steps",
            "FeatureSpec",  # of the examples; here, `vocab` and `EncoderSpec` only for the checks
            "vocab",
            "EncoderSpec",
            *_WRITES_LISTS,  # how dev lists are written while training: no reason to train again
        ),
        check=checks.pretraining,
        every_process=True,
        describe=train.describe_pretrain,
        example="pretrain --gin.WORK_DIR=work/mine --gin.MODEL=small --gin.STEPS=20_000",
    ),
    StageSpec(
        name="rewards",
        summary="weigh what people did with every suggestion list",
        run=prefer.rewards,
        folder="rewards",
        inputs=lambda context: ("log/*.parquet", "mined/*", "examples/*/train/*.json"),
        configures=("RewardConfig", "FeatureSpec"),
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
            "examples/*/train/*.json",
            "vocab/*",
            "pretrain/model.json",
            *opened.INDEX,
            opened.parameters(context, "pretrain"),
        ),
        also_reads=lambda context: ("log/*.parquet", "mined/*"),
        configures=("rwr", "ListConfig", "PreferenceConfig", "make_optimizer", "ItemLoader"),
        changeable=("rwr", "make_optimizer", "ItemLoader", "SEED"),
        fixed=("rwr.params_from", "rwr.reference"),
        ignores=(
            "make_mesh",
            "compiler_options",
            "rwr.log_every",
            "rwr.profile_steps",
            *_WRITES_LISTS,
        ),
        follows=("pretrain",),
        check=prefer.check_rwr,
        every_process=True,
        example="rwr --gin.WORK_DIR=work/mine --gin.PreferenceConfig.loss=softmax_dpo --restart",
    ),
    StageSpec(
        name="cascade",
        summary="train the rival: recall, pre-rank and rank, one after another",
        run=evaluating.cascade,
        folder="cascade",
        inputs=lambda context: ("examples/*", "examples/*/train/*.json", "mined/*", *opened.INDEX),
        configures=("CascadeConfig", "AsOfConfig"),
        in_run=False,
        example="cascade --gin.WORK_DIR=work/mine",
    ),
    StageSpec(
        name="evaluate",
        summary="score the model beside most popular completion",
        run=evaluating.evaluate,
        folder="report",
        subfolder=evaluating.report_name,
        inputs=evaluating.scored,
        also_reads=evaluating.shown,
        check=evaluating.check_evaluate,
        configures=(
            "evaluate",
            "AsOfConfig",
            "WritingConfig",
            "BeamConfig",
            "suggester",
            "SliceSpec",
            "CascadeConfig",
        ),
        ignores=("ingest", "clicks"),
        recap=evaluating.show_report,
        every_process=True,
        always=True,
        uses_model=True,
        example="evaluate --gin.WORK_DIR=work/mine --gin.LOG=newest_day.parquet",
    ),
    StageSpec(
        name="suggest",
        summary="show suggestions for a typed prefix",
        run=suggesting.suggest,
        configures=("BeamConfig", "suggester", "WritingConfig", "AsOfConfig"),
        flags=suggesting.suggest_flags,
        in_run=False,
        uses_model=True,
        example='suggest --gin.WORK_DIR=work/mine --prefix "lego st" --history "duplo"',
    ),
    StageSpec(
        name="serve",
        summary="answer requests over HTTP, with a page to type at, and store what people do",
        run=serving.serve,
        also_reads=lambda context: ("log/dev.parquet",),
        check=serving.check_serve,
        configures=(
            "ServerConfig",
            "EngineConfig",
            "FeedbackConfig",
            "WritingConfig",
            "BeamConfig",
            "suggester",
            "WritingConfig",
            "AsOfConfig",
        ),
        in_run=False,
        uses_model=True,
        example="serve --gin.WORK_DIR=work/mine --gin.ServerConfig.port=8080",
    ),
    StageSpec(
        name="export_feedback",
        summary="write the feedback that the service has stored as a log, for `update`",
        run=serving.export_feedback,
        also_reads=lambda context: ("log/dev.parquet",),
        configures=("FeedbackConfig",),
        flags=serving.export_flags,
        in_run=False,
        example="export_feedback --gin.WORK_DIR=work/mine --to fresh.parquet",
    ),
    StageSpec(
        name="export",
        summary="write the model as a Hugging Face T5 folder",
        run=export.export,
        flags=export.flags,
        in_run=False,
        uses_model=True,
        example="export --gin.WORK_DIR=work/mine --to exported",
    ),
    StageSpec(
        name="convert",
        summary="write a T5X checkpoint as a Hugging Face T5 folder, to start training from",
        run=export.convert,
        flags=export.convert_flags,
        in_run=False,
        example="convert --checkpoint checkpoint_1000000 --vocabulary spiece.model --to work/t5",
    ),
    StageSpec(
        name="tfds",
        summary="write the log as a TensorFlow Datasets dataset",
        run=export.tfds,
        inputs=lambda context: ("log/*.parquet",),
        configures=("FeatureSpec",),
        flags=export.tfds_flags,
        in_run=False,
        example="tfds --gin.WORK_DIR=work/mine --to work/mine_tfds --name mine",
    ),
    StageSpec(
        name="update",
        summary="learn from a fresh log: the next model, published if it is not worse",
        run=update.update,
        configures=(
            "update",
            "FeedbackConfig",
            "ingest",
            "clicks",
            "AsOfConfig",
            "WritingConfig",
            "BeamConfig",
            "suggester",
            "SliceSpec",
        ),
        check=update.check,
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
            "AsOfConfig",
            "ItemLoader",
            "make_mesh",
            "compiler_options",
            "make_optimizer",
            "pretrain",
            "rwr",
            "ListConfig",
            "PreferenceConfig",
            "align",
            "EncoderSpec",
            "BeamConfig",
        ),
        flags=compiling.flags,
        in_run=False,
        example="compile --gin.MODEL=base --gin.BATCH_SIZE=4096 --topology=v5e:16x16",
    ),
    StageSpec(
        name="compare",
        summary="show the scores of several work directories side by side",
        run=comparing.compare,
        configures=("SliceSpec",),
        flags=comparing.flags,
        in_run=False,
        example="compare --run work/ablations/full --run work/ablations/no_pre",
    ),
    StageSpec(
        name="sweep",
        summary="train a work directory again with other settings, and compare",
        run=sweeping.sweep,
        check=sweeping.check,
        describe=sweeping.describe,
        flags=sweeping.flags,
        in_run=False,
        example="sweep --gin.WORK_DIR=work/mine --set pretrain.steps=500,1000",
    ),
    StageSpec(
        name="run",
        summary="all of it: every stage in order, skipping what is up to date and saying why not",
        run=lambda context: 0,  # main runs the others
        flags=_part,
        in_run=False,
        example="run --gin_file=gin_configs/quickstart.gin --gin.WORK_DIR=work/quickstart",
    ),
)
STAGES = {spec.name: spec for spec in _ALL}
