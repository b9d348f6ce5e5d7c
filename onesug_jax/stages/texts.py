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

_SPACED = 0.2  # least share of queries with a space in a language that separates words by spaces


def vocab(
    context: Context,
    *,
    pieces: int = 4096,
    weighted: bool | None = None,
    sid_levels: int = 4,
    sid_codes: int = 512,
    pretrained: str | None = None,
) -> None:
    """Makes the vocabulary from the indexed queries, into WORK_DIR/vocab.

    `weighted` weights a query by its search count, so that popular ones have few pieces; otherwise
    every query has weight one. None: weighted, except if few queries contain a space (Chinese):
    there popular queries would become single pieces that share nothing with their prefixes.

    `pretrained` is the folder of a T5 in the Hugging Face layout: its pieces are used instead of
    newly trained ones, and our tokens follow its table. `pieces` and `weighted` then have no
    effect.
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
    """Takes over a pretrained model's pieces; prints how well they cover the indexed queries."""
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
    """Writes the fixed examples of a mixture into WORK_DIR/examples.

    `mixture` is the one of this project, made of `tasks` (kind -> rate), or one that a gin file's
    `import` has added to SeqIO's registry. With `FeatureSpec.items`, one walk through time makes
    the rows, with at most `candidates` each; only the last `days` of train become rows (an update
    sets it), and older events only update the counts.
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
    """The kinds of example that need semantic ids, if one of the tasks does."""
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
