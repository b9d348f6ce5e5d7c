"""The stages that make a model from a log, in the order of `run`."""

from __future__ import annotations

from onesug_jax.pipeline.spec import Context, StageSpec
from onesug_jax.stages import (
    checks,
    log,
    parts,
    prefer,
    pretrained,
    represent,
    texts,
    train,
    trained,
)

# Settings of the dev lists during training: a change of them does not require a new training.
_WRITES_LISTS = ("WritingConfig", "BeamConfig", "suggester", "SliceSpec")


def _watched(context: Context) -> tuple[str, ...]:
    """The log files for the dev metrics during training: a text model's lists need all of them."""
    log = "log/dev.parquet" if context.settings["FeatureSpec.items"] else "log/*.parquet"
    return (log, "mined/*")


MAKING = (
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
        ignores=("LogEngineConfig",),
        example="ingest --gin.WORK_DIR=work/mine --gin.LOG=my_log.parquet",
    ),
    StageSpec(
        name="mine",
        summary="mine what is searched and typed, and related queries",
        run=log.mine,
        check=log.check_engine,
        folder="mined",
        inputs=lambda context: ("log/train.parquet",),
        configures=("mine",),
        ignores=("LogEngineConfig",),
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
        inputs=lambda context: (*parts.ENCODER, "mined/*"),
        configures=("quantize", "RqVaeConfig", "EnhanceConfig", "make_optimizer"),
        changeable=("make_optimizer", "quantize.steps", "quantize.batch_size"),
        ignores=("make_mesh", "quantize.log_every", "encode"),
        check=checks.training("quantize", "quantize/make_optimizer"),
        every_process=True,
        example="quantize --gin.WORK_DIR=work/mine --gin.quantize.method=rq_kmeans",
    ),
    StageSpec(
        name="index",
        summary="enhance the indexed prefixes and find their related queries",
        run=represent.index,
        check=log.check_engine,
        folder="index",
        inputs=lambda context: (*parts.ENCODER, *parts.IDS, "mined/*"),
        configures=("index", "EnhanceConfig", "SearchConfig"),
        ignores=("encode", "LogEngineConfig"),
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
            *pretrained.files(
                context, "vocab.pretrained", pretrained.SPIECE, "config.json", sure=True
            ),
        ),
        configures=("vocab",),
        example="vocab --gin.WORK_DIR=work/mine --gin.vocab.pieces=8192",
    ),
    StageSpec(
        name="examples",
        summary="turn the log into fixed examples, in shards",
        run=texts.examples,
        check=log.check_engine,
        folder="examples",
        format=2,
        resumes=True,
        inputs=lambda context: ("log/*.parquet", "mined/*", "vocab/*", *parts.INDEX),
        configures=("examples", "FeatureSpec", "AsOfConfig"),
        ignores=("LogEngineConfig",),
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
            *parts.INDEX,
            *pretrained.files(context, "pretrain.params_from", "config.json", "model*.safetensors"),
        ),
        also_reads=_watched,
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
            "FeatureSpec",  # it, `vocab` and `EncoderSpec` are used only by the checks
            "vocab",
            "EncoderSpec",
            *_WRITES_LISTS,
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
        check=log.check_engine,
        folder="rewards",
        inputs=lambda context: ("log/*.parquet", "mined/*", "examples/*/train/*.json"),
        configures=("RewardConfig", "FeatureSpec"),
        ignores=("LogEngineConfig",),
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
            *parts.INDEX,
            f"pretrain/{trained.parameters(context.work.pretrain)}",
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
)
