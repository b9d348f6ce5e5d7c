"""What the stages share of requests with items: the as-of state, and the tables on the device."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import Manifest, WorkDir
from onesug_jax.stages import opened
from onesug_jax.stages.represent import EMBEDDINGS

if TYPE_CHECKING:
    from onesug_jax.logs.asof.config import AsOfConfig
    from onesug_jax.logs.asof.state import AsOf
    from onesug_jax.model.items import ItemTables
    from onesug_jax.retrieval.prefix_index import PrefixIndex
    from onesug_jax.retrieval.tables import QueryTables

SPARE = 4096  # rows for queries that appear after training
SNAPSHOT = "asof"  # folder of the examples: the counts at the end of the log


def index(work: WorkDir) -> PrefixIndex:
    """The index of prefixes and queries."""
    from onesug_jax.retrieval.prefix_index import PrefixIndex

    return PrefixIndex.load(work.index, expect={"encoder": opened.encoder_in_use(work)})


def state(context: Context, *, spare: int = SPARE, **changes) -> AsOf:
    """The as-of state of a shop before its first search.

    Args:
      spare: numbers for queries that appear later.
      changes: of `AsOfConfig`.
    """
    from onesug_jax.logs.asof.state import AsOf

    config = dataclasses.replace(_config(context), **changes)
    queries = opened.completions(context).queries
    return AsOf(queries, config, spare=spare, around=_around(context.work, config.around))


def _config(context: Context) -> AsOfConfig:
    """AsOfConfig, where a query exists for others as late as in what was mined, or later, and a
    visitor's repeats count no more often.
    """
    config = context.configured("AsOfConfig")()
    mined = Manifest.read(context.home.mined)
    if mined is None:
        return config
    least = max(config.min_users, mined.settings.get("mine.min_users", 1))
    most = min(config.max_repeats, mined.settings.get("mine.max_repeats", config.max_repeats))
    return dataclasses.replace(config, min_users=least, max_repeats=most)


def restored(context: Context, *, spare: int = SPARE) -> AsOf:
    """The as-of state at the end of the log that the model in use was trained on, with its settings
    but for the number of candidates.

    Args:
      spare: numbers for queries that appear from now on.

    Raises:
      UserError: the model was trained before states were saved beside it.
    """
    from onesug_jax.logs.asof import snapshot

    folder = os.path.join(context.work.examples, SNAPSHOT)
    most = context.configured("AsOfConfig")().candidates  # training rows hold fewer
    config = dataclasses.replace(snapshot.settings(folder), candidates=most)
    around = _around(context.work, config.around)
    return snapshot.load(folder, config, spare=spare, around=around)


def _around(work: WorkDir, most: int) -> Callable[[str], tuple[int, ...]] | None:
    return around(index(work), most) if most else None


def around(index: PrefixIndex, most: int) -> Callable[[str], tuple[int, ...]] | None:
    """Prefix -> at most so many queries near it; None: none is wanted."""
    if not most:
        return None

    @functools.lru_cache(maxsize=65_536)
    def near(prefix: str) -> tuple[int, ...]:
        numbers = index.neighbours(prefix, most)
        return () if numbers is None else tuple(numbers.tolist())

    return near


def tables(context: Context, *, spare: int = SPARE) -> QueryTables:
    """Vectors and words of all queries and prefixes that were mined. The shapes are those of other
    versions of about as many, so that an update finds its programs compiled.
    """
    import numpy as np

    from onesug_jax.retrieval.tables import QueryTables

    vectors = np.load(os.path.join(context.work.semantic_ids, EMBEDDINGS), mmap_mode="r")
    prefixes = index(context.work).prefix_vectors
    queries = opened.completions(context).queries
    return QueryTables.build(queries, vectors, prefixes, spare, multiple=SPARE)


def on_device(tables: QueryTables) -> ItemTables:
    """The tables as the model reads them."""
    import jax.numpy as jnp

    from onesug_jax.model.items import ItemTables

    names = ("vectors", "words", "word_weights", "lengths", "prefix_vectors")
    return ItemTables(*(jnp.asarray(getattr(tables, name)) for name in names))
