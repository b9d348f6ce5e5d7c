"""Stages of the first pillar: the aligned encoder, semantic ids, and the index of prefixes."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from onesug_jax.files import atomic_path, atomic_write
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import WorkDir, read_result
from onesug_jax.stages.parts import EMBEDDINGS, Parts
from onesug_jax.train import distributed

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from onesug_jax.text_encoder.encode_new import Encoded
    from onesug_jax.text_encoder.encoder import TextEncoder

# Texts and plain vectors e_q of the queries, which an update reuses.
PLAIN, PLAIN_TEXTS = (os.path.join("encoded", f"queries.{kind}") for kind in ("npy", "txt"))
_ONE_PROCESS = 50_000  # with fewer queries, starting workers would take longer than the work


def align(context: Context) -> None:
    """Aligns a text encoder on the mined pairs, into WORK_DIR/encoder."""
    from onesug_jax.train.compiler import cache_programs

    cache_programs(context.compiled)
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
    """Writes the enhanced embedding and the semantic id of every indexed query into
    WORK_DIR/semantic_ids.
    """
    import numpy as np

    from onesug_jax.semantic_ids import id_plots
    from onesug_jax.train.compiler import cache_programs

    cache_programs(context.compiled)
    work, parts = context.work, Parts(context.work)
    encoder, indexed = parts.encoder, parts.completions
    path = os.path.join(work.semantic_ids, EMBEDDINGS)
    enhancing = context.configured("quantize/EnhanceConfig")()
    encode = context.configured("encode")
    distributed.run_on_primary_and_broadcast(
        lambda: _embed(encode, encoder, work.mined, enhancing, path)
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


def encode(
    encoder: TextEncoder,
    texts: pa.Array,
    what: str,
    out: np.ndarray,
    *,
    vectors_from: str | None = None,
) -> None:
    """Writes the vectors of all `texts` [N] to `out` [N, D].

    Args:
      what: "queries" or "prefixes".
      vectors_from: WORK_DIR of another version, whose vectors are reused if the same encoder made
        them.
    """
    from onesug_jax.text_encoder.encode_new import encode_new

    stored = None if vectors_from is None else _stored(WorkDir(vectors_from), what)
    new = encode_new(texts, encoder, out, stored)
    if stored is not None:
        print(f"{what}: {new:,} of {len(texts):,} are new and were encoded", flush=True)


def _stored(work: WorkDir, what: str) -> Encoded:
    """The queries or prefixes of another version, with their vectors."""
    import numpy as np
    import pyarrow as pa

    from onesug_jax.semantic_ids.quantiser import ABOUT
    from onesug_jax.text_encoder.encode_new import Encoded

    folder, vectors, texts = {
        "queries": (work.semantic_ids, PLAIN, PLAIN_TEXTS),
        "prefixes": (work.index, "prefix_vectors.npy", "prefixes.txt"),
    }[what]
    with open(os.path.join(folder, texts), encoding="utf-8", newline="\n") as file:
        stored = pa.array(file.read().split("\n")[:-1], pa.string())
    made_with = read_result(os.path.join(folder, ABOUT))["encoder"]
    return Encoded(stored, np.load(os.path.join(folder, vectors), mmap_mode="r"), made_with)


def _texts(mined: str, table: str) -> pa.Array:
    """The mined queries or prefixes."""
    from onesug_jax.logs.mined import TABLES, read_table

    return read_table(mined, table)[TABLES[table].names[0]].combine_chunks()


def _embed(encode, encoder, mined: str, enhancing, path: str) -> None:
    """Writes the vectors e_q of all queries, and the enhanced ones e_q* to `path`, as float16
    `[N, D]`; does nothing if an interrupted run has written them.
    """
    import numpy as np

    from onesug_jax.retrieval.enhance import enhance

    if os.path.exists(path):
        return
    queries, folder = _texts(mined, "queries"), os.path.dirname(path)
    shape = (len(queries), encoder.dimension)

    def table(name: str) -> np.memmap:
        return np.lib.format.open_memmap(name, mode="w+", dtype=np.float16, shape=shape)

    with atomic_write(os.path.join(folder, PLAIN_TEXTS)) as file:
        file.writelines(f"{query}\n".encode() for query in queries.to_pylist())
    with atomic_path(os.path.join(folder, PLAIN)) as part:
        plain = table(part)
        encode(encoder, queries, "queries", plain)
        plain.flush()

    def vectors_of(numbers: np.ndarray) -> np.ndarray:
        return plain[numbers].astype(np.float32)

    with atomic_path(path) as part:
        out = table(part)
        enhance(plain, *_related(mined), vectors_of, enhancing, out=out)
        out.flush()


def _related(mined: str) -> tuple[np.ndarray, np.ndarray]:
    """Offsets `[N + 1]` and numbers of the related queries mined for each query, best first:
    related by clicks on the same items, or by visitors if the log has no item clicks.
    """
    import numpy as np

    queries = _texts(mined, "queries")
    both = {"query": queries, "other": queries}
    rows, others = _pairs(mined, "query_query", both, source="item")
    if not len(rows):
        rows, others = _pairs(mined, "query_query", both)
    return np.searchsorted(rows, np.arange(len(queries) + 1)), others


def index(
    context: Context, *, precomputed: int = 0, similar: int = 128, vectors: str = "int8"
) -> None:
    """Builds the index of prefixes and their related queries, into WORK_DIR/index.

    `precomputed` is the number of related queries that are stored for every indexed prefix; others
    are searched on request. `similar` is the number of nearest queries that are stored for every
    query; candidates come from those of the user's history. `vectors` is the storage type of the
    queries' vectors, "int8" or "float16".
    """
    import numpy as np

    from onesug_jax.logs.workers import results
    from onesug_jax.retrieval.prefix_index import PrefixIndex
    from onesug_jax.semantic_ids.quantiser import Quantiser
    from onesug_jax.train.compiler import cache_programs

    cache_programs(context.compiled)
    work, parts = context.work, Parts(context.work)
    engine, many = context.configured("LogEngineConfig")(), len(parts.ids.ids) >= _ONE_PROCESS
    encoder = parts.encoder
    quantiser = Quantiser.load(work.semantic_ids, expect_encoder=encoder.fingerprint)
    prefixes = _texts(work.mined, "prefixes")
    prefix_vectors = np.empty((len(prefixes), encoder.dimension), np.float16)
    context.configured("encode")(encoder, prefixes, "prefixes", prefix_vectors)
    both = {"prefix": prefixes, "query": _texts(work.mined, "queries")}
    rows, pair_queries = _pairs(work.mined, "prefix_query", both)
    built = PrefixIndex.build(
        work.index,
        queries=parts.completions.queries,
        embeddings=parts.embeddings,
        ids=parts.ids.ids,
        quantiser=quantiser,
        prefixes=prefixes.to_pylist(),
        prefix_vectors=prefix_vectors,
        pair_offsets=np.searchsorted(rows, np.arange(len(prefixes) + 1)),
        pair_queries=pair_queries,
        fingerprints={"encoder": encoder.fingerprint, "ids": quantiser.fingerprint},
        search_config=context.configured("SearchConfig")(),
        enhance_config=context.configured("EnhanceConfig")(),
        related=precomputed,
        similar=similar,
        vectors=vectors,
        workers=functools.partial(results, engine, work.index) if many else map,
    )
    print(
        f"{len(built):,} queries, {len(prefixes):,} prefixes; "
        f"{built.bytes_per_query:.0f} bytes a query",
        flush=True,
    )


def _pairs(
    mined: str, table: str, of: Mapping[str, pa.Array], source: str | None = None
) -> list[np.ndarray]:
    """The positions of a table's texts in arrays of all texts, int32 `[pairs]` per column.

    Args:
      of: column -> array of all its texts.
      source: the "query_query" pairs to select; None: all.
    """
    import numpy as np
    import pyarrow.compute as pc

    from onesug_jax.logs.mined import read_blocks

    parts: dict[str, list[np.ndarray]] = {name: [np.empty(0, np.int32)] for name in of}
    for block in read_blocks(mined, table, [*of, *([] if source is None else ["source"])]):
        if source is not None:
            block = block.filter(pc.equal(block["source"], source))
        for name, values in of.items():
            positions = pc.index_in(block[name], value_set=values)
            parts[name].append(positions.to_numpy(zero_copy_only=False).astype(np.int32))
    return [np.concatenate(arrays) for arrays in parts.values()]
