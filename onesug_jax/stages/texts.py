"""Stages that turn text into ids: the vocabulary, and the fixed examples of the log."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

from onesug_jax.errors import UserError
from onesug_jax.files import write_json
from onesug_jax.registry import Context
from onesug_jax.stages import opened

_SPACED = 0.2  # share of queries with a space from which words are taken to be parted by spaces


def vocab(
    context: Context,
    *,
    pieces: int = 4096,
    weighted: bool | None = None,
    sid_levels: int = 4,
    sid_codes: int = 512,
) -> None:
    """The id space, from the known queries, into WORK_DIR/vocab.

    `weighted` counts a query as often as it was searched, which keeps popular ones short; without
    it every query counts once. None: weighted, except where few queries hold a space (Chinese):
    there popular queries would become single pieces that share nothing with what is typed on the
    way to them.
    """
    from onesug_jax.tasks.vocabulary import Vocabulary

    known = opened.completions(context)
    texts: Iterator[str] = iter(known.queries)
    if weighted is None:
        weighted = sum(" " in query for query in known.queries) >= _SPACED * len(known)
    if weighted:
        pairs = zip(known.queries, known.counts.tolist(), strict=True)
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
    splits = opened.splits(context.work.log)
    if mixture == "onesug":
        index = opened.completions(context)
        cache.build_examples(
            context.work.examples,
            splits=splits,
            vocabulary=vocabulary,
            spec=spec,
            context=opened.related(context, spec),
            known=lambda query: index.find(query) >= 0,
            tasks=tasks,
            kinds=_id_kinds(context, vocabulary, index, tasks),
        )
    else:
        cache.cache_mixture(
            mixture,
            context.work.examples,
            splits=tuple(splits),
            lengths={"inputs": spec.input_length, "targets": spec.target_length},
            vocabulary=vocabulary,
        )
    write_json(os.path.join(context.work.examples, "features.json"), dataclasses.asdict(spec))


def _id_kinds(context: Context, vocabulary, index, tasks: dict[str, float] | None) -> dict:
    """The kinds of example that need semantic ids, where one of the tasks does."""
    if not any("id" in kind.split("_") for kind in tasks or ()):
        return {}
    from onesug_jax.tasks.kinds import id_kinds

    ids = opened.semantic_ids(context)
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
