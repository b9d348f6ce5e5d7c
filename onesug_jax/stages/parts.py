"""The results of earlier stages in one folder; each part is read once, on first use.

A stage that makes a model reads the `Parts` of WORK_DIR. A command that uses a trained model opens
a `trained_model.TrainedModel`: `Parts` with the model.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from onesug_jax.errors import UserError
from onesug_jax.files import require_files
from onesug_jax.pipeline.workdir import WorkDir, read_result

if TYPE_CHECKING:
    import numpy as np

    from onesug_jax.logs.completion import CompletionIndex
    from onesug_jax.model.items import ItemTables
    from onesug_jax.retrieval.prefix_index import PrefixIndex
    from onesug_jax.retrieval.related import RelatedQueries
    from onesug_jax.retrieval.tables import QueryTables
    from onesug_jax.semantic_ids.ids import SemanticIds
    from onesug_jax.tasks.features import FeatureSpec
    from onesug_jax.tasks.vocabulary import Vocabulary
    from onesug_jax.text_encoder.encoder import TextEncoder

EMBEDDINGS = "embeddings.npy"  # e_q* of all indexed queries, in the order of their texts, float16
SPARE = 4096  # rows of the tables for queries that appear after training

# The results of the first pillar, which related queries and semantic ids need.
ENCODER = ("encoder/*.json", "encoder/*.safetensors")
IDS = ("semantic_ids/*.npy", "semantic_ids/*.npz", "semantic_ids/*.json")
INDEX = (*ENCODER, *IDS, "index/*")


class Parts:
    """The parts of a work directory or of a bundle."""

    def __init__(self, work: WorkDir):
        self.work = work

    @cached_property
    def completions(self) -> CompletionIndex:
        """The indexed queries and their search counts."""
        from onesug_jax.logs.completion import CompletionIndex

        return CompletionIndex.load(self.work.mined)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The id space."""
        from onesug_jax.tasks.vocabulary import Vocabulary

        return Vocabulary.load(self.work.vocab)

    @cached_property
    def encoder(self) -> TextEncoder:
        """The aligned text encoder."""
        from onesug_jax.text_encoder.encoder import TextEncoder

        return TextEncoder.load(self.work.encoder)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors `[n, E]` of texts."""
        return self.encoder.encode(texts)

    @cached_property
    def ids(self) -> SemanticIds:
        """The semantic ids of all indexed queries, in the order of their texts."""
        from onesug_jax.semantic_ids.ids import SemanticIds

        return SemanticIds.load(self.work.semantic_ids)

    @cached_property
    def embeddings(self) -> np.ndarray:
        """e_q* of all indexed queries `[N, E]`, in the order of their texts."""
        import numpy as np

        return np.load(os.path.join(self.work.semantic_ids, EMBEDDINGS), mmap_mode="r")

    @cached_property
    def index(self) -> PrefixIndex:
        """The index of prefixes and queries.

        Raises:
          UserError: it was made with other queries (so their numbers differ) or another encoder.
        """
        from onesug_jax.retrieval.prefix_index import PrefixIndex

        _check_same_queries(self.work)
        encoder = read_result(os.path.join(self.work.encoder, "alignment.json"))["fingerprint"]
        return PrefixIndex.load(self.work.index, expect={"encoder": encoder})

    def tables(self, spare: int = SPARE) -> QueryTables:
        """Vectors and words of all mined queries and prefixes. Their shapes are rounded up, so that
        an update with about as many finds its programs compiled.
        """
        from onesug_jax.retrieval.tables import QueryTables

        prefixes, queries = self.index.prefix_vectors, self.completions.queries
        return QueryTables.build(queries, self.embeddings, prefixes, spare, multiple=SPARE)

    def related(self, spec: FeatureSpec) -> RelatedQueries:
        """The source of related queries and soft tokens for a text model's requests, by `spec`."""
        from onesug_jax.retrieval.related import RelatedQueries

        if not (spec.related or spec.soft):
            return RelatedQueries(self.completions, 0)
        return RelatedQueries(
            self.completions,
            spec.related,
            index=self.index,
            encode=self.encode,
            soft=spec.soft,
        )


def _check_same_queries(work: WorkDir) -> None:
    mined, indexed = (os.path.join(folder, "queries.txt") for folder in (work.mined, work.index))
    require_files([mined], "the mined queries", "run mine first")
    require_files([indexed], "the queries of the prefix index", "run index first")
    if not filecmp.cmp(mined, indexed, shallow=False):
        counts = []
        for path in (mined, indexed):
            with open(path, "rb") as file:
                counts.append(sum(1 for _ in file))
        raise UserError(
            f"{work.index} was made of other queries ({counts[1]:,}) than {work.mined} now holds "
            f"({counts[0]:,}); run the index stage again"
        )


def on_device(tables: QueryTables) -> ItemTables:
    """The tables as arrays on the device."""
    import jax.numpy as jnp

    from onesug_jax.model.items import ItemTables

    names = ("vectors", "words", "word_weights", "lengths", "prefix_vectors")
    return ItemTables(*(jnp.asarray(getattr(tables, name)) for name in names))
