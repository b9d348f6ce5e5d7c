"""Stages that turn text into ids: the vocabulary, and the fixed examples of the log."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence

from onesug_jax.errors import UserError
from onesug_jax.files import write_json
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import split_files
from onesug_jax.stages import asof_examples
from onesug_jax.stages.parts import Parts
from onesug_jax.stages.pretrained import SPIECE

_SPACED = 0.2  # share of queries with a space from which words are taken to be parted by spaces


def vocab(
    context: Context,
    *,
    pieces: int = 4096,
    weighted: bool | None = None,
    sid_levels: int = 4,
    sid_codes: int = 512,
    pretrained: str | None = None,
) -> None:
    """The id space, from the indexed queries, into WORK_DIR/vocab.

    `weighted` counts a query as often as it was searched, which makes popular ones short; without
    it every query counts once. None: weighted, except where few queries hold a space (Chinese):
    there popular queries would become single pieces that share nothing with what is typed on the
    way to them.

    `pretrained`, the folder of a T5 in the Hugging Face layout, gives its own pieces instead of
    newly trained ones, and our tokens the ids behind its table; `pieces` and `weighted` are then
    without effect.
    """
    from onesug_jax.tasks.vocabulary import Vocabulary

    indexed = Parts(context.work).completions
    if pretrained is not None:
        _adopt(context, indexed.queries, pretrained, sid_levels, sid_codes)
        return
    texts: Iterator[str] = iter(indexed.queries)
    if weighted is None:
        weighted = sum(" " in query for query in indexed.queries) >= _SPACED * len(indexed)
    if weighted:
        pairs = zip(indexed.queries, indexed.counts.tolist(), strict=True)
        texts = (query for query, count in pairs for _ in range(count))
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


def _adopt(
    context: Context, queries: Sequence[str], folder: str, sid_levels: int, sid_codes: int
) -> None:
    """The id space of a pretrained model; says how well its pieces cover the indexed queries."""
    from onesug_jax.model.hf_config import read_config
    from onesug_jax.tasks.vocabulary import Vocabulary

    config, family = read_config(folder)
    vocabulary = Vocabulary.adopt(
        os.path.join(folder, SPIECE),
        context.work.vocab,
        rows=config.vocab_size,
        sid_levels=sid_levels,
        sid_codes=sid_codes,
    )
    ids = [vocabulary.encode(query) for query in queries]
    lacking = sum(vocabulary.unk_id in row for row in ids)
    print(
        f"{vocabulary.size:,} ids: {vocabulary.pieces:,} pieces of {family}, the other "
        f"{config.vocab_size - vocabulary.pieces} rows of its table, {sid_levels} x {sid_codes} "
        f"semantic-id tokens, separators, padding; {sum(map(len, ids)) / max(1, len(ids)):.1f} "
        "pieces a query"
    )
    if lacking:
        print(
            f"{lacking:,} of {len(ids):,} indexed queries hold characters that these pieces lack, "
            "and may be taken for one another; mT5 and umT5 have pieces for every character"
        )


def examples(
    context: Context,
    *,
    mixture: str = "onesug",
    tasks: dict[str, float] | None = None,
    candidates: int = 64,
    days: float | None = None,
) -> None:
    """Fixed examples of a mixture, into WORK_DIR/examples.

    `mixture` names the one of this project, made of `tasks` (kind -> rate), or any in SeqIO's
    registry that a gin file's `import` has registered. With `FeatureSpec.items`, rows are
    made by one walk through time and hold at most `candidates`; `days` limits those of train to the
    last so many days, which is all that an update learns from: older rows are counted only.
    """
    from onesug_jax.tasks import examples as cache

    parts, spec = Parts(context.work), context.configured("FeatureSpec")()
    splits = split_files(context.work.log)
    if mixture == "onesug" and spec.items:
        asof_examples.examples(context, parts, spec, splits, most=candidates, days=days)
    elif mixture == "onesug":
        index = parts.completions
        cache.build_examples(
            context.work.examples,
            splits=splits,
            vocabulary=parts.vocabulary,
            spec=spec,
            context=parts.related(spec),
            indexed=lambda query: index.find(query) >= 0,
            tasks=tasks,
            kinds=_id_kinds(parts, tasks),
        )
    else:
        from onesug_jax.tasks.seqio_shards import cache_mixture

        cache_mixture(
            mixture,
            context.work.examples,
            splits=tuple(splits),
            lengths={"inputs": spec.input_length, "targets": spec.target_length},
            vocabulary=parts.vocabulary,
        )
    write_json(os.path.join(context.work.examples, "features.json"), dataclasses.asdict(spec))


def _id_kinds(parts: Parts, tasks: dict[str, float] | None) -> dict:
    """The kinds of example that need semantic ids, where one of the tasks does."""
    if not any("id" in kind.split("_") for kind in tasks or ()):
        return {}
    from onesug_jax.tasks.kinds import id_kinds

    vocabulary, ids, index = parts.vocabulary, parts.ids, parts.completions
    levels, codes = ids.levels, ids.codes
    if levels > vocabulary.sid_levels or codes > vocabulary.sid_codes:
        raise UserError(
            f"semantic ids of {levels} levels x {codes} codes need as many tokens, and the "
            f"vocabulary has {vocabulary.sid_levels} x {vocabulary.sid_codes}: set "
            f"--gin.vocab.sid_levels={levels} --gin.vocab.sid_codes={codes}"
        )

    def ids_of(query: str):
        number = index.find(query)
        return ids.of(number) if number >= 0 else None

    return id_kinds(ids_of)
