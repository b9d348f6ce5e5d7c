"""Stages of the first pillar: the aligned encoder, semantic ids, the index of prefixes."""

from __future__ import annotations

import os

from onesug_jax.registry import Context
from onesug_jax.stages import opened

EMBEDDINGS = "embeddings.npy"  # of all known queries, in the order of their texts, float16


def align(context: Context) -> None:
    """A text encoder aligned on the mined pairs, into WORK_DIR/encoder."""
    opened.keep_compiled(context)
    steps = context.settings["align.steps"]
    context.configured("align")(
        context.work.mined,
        context.work.encoder,
        mesh=context.configured("make_mesh")(),
        optimizer=context.configured("align/make_optimizer")(steps=max(steps, 1)),
        seed=context.seed,
        spec=context.configured("EncoderSpec")(),
        on_mismatch="restart",
    )


def quantize(context: Context) -> None:
    """Semantic ids of all known queries, into WORK_DIR/semantic_ids."""
    import numpy as np

    from onesug_jax.represent import id_plots

    opened.keep_compiled(context)
    work = context.work
    encoder, known = opened.encoder(context), opened.completions(context)
    embeddings = _embed(encoder, known.queries, os.path.join(work.semantic_ids, EMBEDDINGS))
    steps = context.settings["quantize.steps"]
    context.configured("quantize")(
        embeddings,
        np.asarray(known.counts),
        work.semantic_ids,
        mesh=context.configured("make_mesh")(),
        optimizer=context.configured("quantize/make_optimizer")(steps=steps),
        seed=context.seed,
        encoder_fingerprint=encoder.fingerprint,
        config=context.configured("RqVaeConfig")(),
        on_mismatch="restart",
    )
    id_plots.write_plots(work.semantic_ids, embeddings)


def _embed(encoder, texts, path: str):
    """Embeddings `[N, E]` of all texts, written block by block to `path`; a memory map."""
    import numpy as np

    block = 16_384
    out = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float16, shape=(len(texts), encoder.dimension)
    )
    for start in range(0, len(texts), block):
        out[start : start + block] = encoder.encode(texts[start : start + block])
        if start:
            print(f"embedded {start + block:,} of {len(texts):,} queries", flush=True)
    out.flush()
    return np.load(path, mmap_mode="r")


def index(context: Context, *, precomputed: int = 16, vectors: str = "int8") -> None:
    """The index of prefixes and what is related to them, into WORK_DIR/index.

    `precomputed` related queries are worked out ahead for every known prefix; `vectors` is how the
    queries' are stored, "int8" or "float16".
    """
    import numpy as np

    from onesug_jax.logs.mined import read_table
    from onesug_jax.represent.prefix_index import PrefixIndex
    from onesug_jax.represent.quantiser import Quantiser

    opened.keep_compiled(context)
    work = context.work
    encoder, known = opened.encoder(context), opened.completions(context)
    ids = opened.semantic_ids(context)
    quantiser = Quantiser.load(work.semantic_ids, expect_encoder=encoder.fingerprint)
    prefixes = read_table(work.mined, "prefixes").column("prefix")
    pairs = read_table(work.mined, "prefix_query")
    rows = _numbers(pairs.column("prefix"), prefixes)
    built = PrefixIndex.build(
        work.index,
        queries=known.queries,
        embeddings=np.load(os.path.join(work.semantic_ids, EMBEDDINGS), mmap_mode="r"),
        ids=ids.ids,
        quantiser=quantiser,
        prefixes=prefixes.to_pylist(),
        prefix_vectors=encoder.encode(prefixes.to_pylist()),
        pair_offsets=np.searchsorted(rows, np.arange(len(prefixes) + 1)),
        pair_queries=_numbers(pairs.column("query"), read_table(work.mined, "queries")["query"]),
        pair_counts=pairs.column("count").to_numpy(),
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


def _numbers(texts, known):
    """`[n]` places of Arrow texts in a column of known ones, all of which it holds."""
    import pyarrow.compute as pc

    return pc.index_in(texts, value_set=known.combine_chunks()).to_numpy().astype("int64")
