"""Stages of the first pillar: the aligned encoder, semantic ids, and the index of prefixes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from onesug_jax.files import atomic_path
from onesug_jax.pipeline.spec import Context
from onesug_jax.stages import opened
from onesug_jax.train import distributed

if TYPE_CHECKING:
    import numpy as np

EMBEDDINGS = "embeddings.npy"  # e_q* of all indexed queries, in the order of their texts, float16


def align(context: Context) -> None:
    """A text encoder aligned on the mined pairs, into WORK_DIR/encoder."""
    opened.cache_compiled(context)
    steps = context.settings["align.steps"]
    context.configured("align")(
        context.work.mined,
        context.work.encoder,
        mesh=context.configured("make_mesh")(),
        optimizer=context.configured("align/make_optimizer")(steps=max(steps, 1)),
        seed=context.seed,
        spec=context.configured("EncoderSpec")(),
        states=context.states,
    )


def quantize(context: Context) -> None:
    """The enhanced embedding of every indexed query, and its semantic id, into
    WORK_DIR/semantic_ids.
    """
    import numpy as np

    from onesug_jax.semantic_ids import id_plots

    opened.cache_compiled(context)
    work = context.work
    encoder, indexed = opened.encoder(context.work), opened.completions(context)
    path = os.path.join(work.semantic_ids, EMBEDDINGS)
    enhancing = context.configured("quantize/EnhanceConfig")()
    distributed.run_on_primary_and_broadcast(
        lambda: _embed(encoder, indexed.queries, work.mined, enhancing, path)
    )
    context.share()
    embeddings = np.load(path, mmap_mode="r")
    steps = context.settings["quantize.steps"]
    context.configured("quantize")(
        embeddings,
        np.asarray(indexed.counts),
        work.semantic_ids,
        mesh=context.configured("make_mesh")(),
        optimizer=context.configured("quantize/make_optimizer")(steps=steps),
        seed=context.seed,
        encoder_fingerprint=encoder.fingerprint,
        config=context.configured("RqVaeConfig")(),
        states=context.states,
    )
    if distributed.is_primary():
        id_plots.write_plots(work.semantic_ids, embeddings)


def _embed(encoder, texts, mined: str, enhancing, path: str) -> None:
    """Writes the enhanced embeddings e_q* `[N, E]` of all texts to `path`, block by block; those
    of an interrupted run stay.
    """
    import numpy as np

    from onesug_jax.retrieval.enhance import enhance

    if os.path.exists(path):
        return

    def table(name: str) -> np.memmap:
        shape = (len(texts), encoder.dimension)
        return np.lib.format.open_memmap(name, mode="w+", dtype=np.float16, shape=shape)

    block, plain = 16_384, path + ".plain"
    own = table(plain)
    for start in range(0, len(texts), block):
        own[start : start + block] = encoder.encode(texts[start : start + block])
        if start:
            print(f"embedded {start + block:,} of {len(texts):,} queries", flush=True)
    with atomic_path(path) as part:
        out = table(part)
        enhance(
            own, *_alike(mined), lambda numbers: own[numbers].astype(np.float32), enhancing, out=out
        )
        out.flush()
    os.remove(plain)


def _alike(mined: str) -> tuple[np.ndarray, np.ndarray]:
    """Offsets `[N + 1]` and numbers of the queries mined for each query, best first: those after
    which the same items were clicked, or where no item ever was, those of the same visitors.
    """
    import numpy as np
    import pyarrow.compute as pc

    from onesug_jax.logs.mined import read_table

    queries, pairs = read_table(mined, "queries")["query"], read_table(mined, "query_query")
    by_item = pairs.filter(pc.equal(pairs["source"], "item"))
    pairs = by_item if by_item.num_rows else pairs
    first = np.searchsorted(_numbers(pairs["query"], queries), np.arange(len(queries) + 1))
    return first, _numbers(pairs["other"], queries)


def index(context: Context, *, precomputed: int = 16, vectors: str = "int8") -> None:
    """The index of prefixes and their related queries, into WORK_DIR/index.

    `precomputed` related queries are worked out ahead for every indexed prefix; `vectors` is how
    the queries' are stored, "int8" or "float16".
    """
    import numpy as np

    from onesug_jax.logs.mined import read_table
    from onesug_jax.retrieval.prefix_index import PrefixIndex
    from onesug_jax.semantic_ids.quantiser import Quantiser

    opened.cache_compiled(context)
    work = context.work
    encoder, indexed = opened.encoder(context.work), opened.completions(context)
    ids = opened.semantic_ids(context)
    quantiser = Quantiser.load(work.semantic_ids, expect_encoder=encoder.fingerprint)
    prefixes = read_table(work.mined, "prefixes").column("prefix")
    pairs = read_table(work.mined, "prefix_query")
    rows = _numbers(pairs.column("prefix"), prefixes)
    built = PrefixIndex.build(
        work.index,
        queries=indexed.queries,
        embeddings=np.load(os.path.join(work.semantic_ids, EMBEDDINGS), mmap_mode="r"),
        ids=ids.ids,
        quantiser=quantiser,
        prefixes=prefixes.to_pylist(),
        prefix_vectors=encoder.encode(prefixes.to_pylist()),
        pair_offsets=np.searchsorted(rows, np.arange(len(prefixes) + 1)),
        pair_queries=_numbers(pairs.column("query"), read_table(work.mined, "queries")["query"]),
        fingerprints={"encoder": encoder.fingerprint, "ids": quantiser.fingerprint},
        search_config=context.configured("SearchConfig")(),
        enhance_config=context.configured("EnhanceConfig")(),
        related=precomputed,
        vectors=vectors,
    )
    print(
        f"{len(built):,} queries, {len(prefixes):,} prefixes; "
        f"{built.bytes_per_query:.0f} bytes a query",
        flush=True,
    )


def _numbers(texts, column):
    """`[n]` places of Arrow texts in an Arrow column that holds all of them."""
    import pyarrow.compute as pc

    return pc.index_in(texts, value_set=column.combine_chunks()).to_numpy().astype("int64")
