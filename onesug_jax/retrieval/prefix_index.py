"""The prefix index: enhanced prefixes e_p*, and the indexed queries nearest to them.

PAPER.md section 2, points 3 and 5. One folder, read by memory map, holds the indexed queries, their
semantic ids and vectors (`tree_search.py`). For each indexed prefix it holds the vector e_p, the
queries that co-occur with it and, computed in advance, the queries nearest to it. For any other
prefix, `related_to` searches with its plain vector.

e_p* is not stored: `enhance.py` computes it on demand from the stored vectors. `index_files.py`
writes the folder. Serving needs numpy only: no text encoder and, unless the search compares
latents, no quantiser.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.files import atomic_files
from onesug_jax.import_path import named
from onesug_jax.logs.asof.config import AsOfConfig
from onesug_jax.logs.asof.nearby import Nearby
from onesug_jax.logs.texts import Texts
from onesug_jax.progress import Progress
from onesug_jax.retrieval import index_files
from onesug_jax.retrieval.enhance import EnhanceConfig, enhance
from onesug_jax.retrieval.id_tree import IdTree
from onesug_jax.retrieval.tree_search import SearchConfig, StoredVectors, TreeSearch
from onesug_jax.semantic_ids.quantiser import Quantiser

_CACHED = 65_536  # prefixes
_BLOCK = 512  # prefixes searched for at a time
_QUERIES = 4096  # queries whose nearest queries one task computes


class PrefixIndex:
    """N indexed queries and P indexed prefixes; made by `build`, opened by `load`.

    Attributes:
      queries: the indexed queries in byte order; a query's number is its position.
      prefixes: the indexed prefixes in byte order.
      fingerprints: of the inputs, as given to `build`.

    Examples:
      >>> import tempfile
      >>> import numpy as np
      >>> from onesug_jax import PrefixIndex, Quantiser, SearchConfig
      >>> vectors = np.array([[0.8, 0.6], [1.0, 0.0], [0.0, 1.0]], np.float32)
      >>> quantiser = Quantiser(np.array([[[1.0, 0.0], [0.0, 1.0]]]))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     index = PrefixIndex.build(
      ...         folder,
      ...         queries=["lamp blue", "lamp red", "tent"],
      ...         embeddings=vectors,
      ...         ids=quantiser.codes(vectors),
      ...         quantiser=quantiser,
      ...         prefixes=["la"],
      ...         prefix_vectors=vectors[:1],
      ...         pair_offsets=np.array([0, 1]),
      ...         pair_queries=np.array([1]),
      ...         fingerprints={},
      ...         search_config=SearchConfig(probes=(2,)),
      ...         related=0,
      ...     )
      ...     index.related_to(np.array([1.0, 0.1]), 2)
      index: ...['lamp red', 'lamp blue']
    """

    def __init__(
        self,
        queries: Texts,
        prefixes: Texts,
        arrays: Mapping[str, np.ndarray],
        about: Mapping[str, Any],
        quantiser: Quantiser | None = None,
    ):
        self.queries, self.prefixes = queries, prefixes
        self.fingerprints: dict[str, str] = dict(about["fingerprints"])
        self.enhance_config = EnhanceConfig(**about["enhance"])
        self.search_config = SearchConfig(**about["search"])
        self._arrays = arrays
        self._vectors = StoredVectors(arrays["vectors"], arrays["scales"])
        latent = self.search_config.measure == "latent"
        self._search = TreeSearch(
            IdTree.from_arrays(arrays, about["nodes"]),
            self._vectors,
            arrays["codewords"],
            self.search_config,
            quantiser.latents if latent and quantiser else None,
        )

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def dimension(self) -> int:
        """Width D of the embeddings."""
        return self._vectors.rows.shape[1]

    @property
    def bytes_per_query(self) -> float:
        """Bytes on disk a query, of the files that grow with the number of queries."""
        names = ("rows", "places", "starts", "children", "codes", "norms", "vectors", "scales")
        size = sum(self._arrays[name].nbytes for name in (*names, "similar"))
        return (size + self.queries.block.nbytes + self.queries.offsets.nbytes) / len(self)

    @property
    def prefix_vectors(self) -> np.ndarray:
        """Unit vectors e_p, `[P, D]`."""
        return self._arrays["prefix_vectors"]

    def prefix_number(self, prefix: str) -> int:
        """The number of an indexed prefix, or -1."""
        return self.prefixes.find(prefix)

    def vectors_of(self, numbers: np.ndarray) -> np.ndarray:
        """Stored unit vectors, float32 [n, D], of the queries with these numbers [n]."""
        places = self._arrays["places"].take(numbers)
        rows = self._vectors.rows.take(places, axis=0).astype(np.float32)
        return rows * self._vectors.scales.take(places)[:, None]

    def enhanced(self, prefix: str) -> np.ndarray | None:
        """e_p*, float32 [D] of length 1, of an indexed prefix; None for another prefix."""
        row = self.prefix_number(prefix)
        if row < 0:
            return None
        begin, end = self._arrays["pair_offsets"][row : row + 2]
        numbers = self._arrays["pair_queries"][begin:end]
        own = self._arrays["prefix_vectors"][row : row + 1]
        offsets = np.array([0, len(numbers)])
        return enhance(own, offsets, numbers, self.vectors_of, self.enhance_config)[0]

    def search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and cosines [B, k] of the indexed queries nearest to `vectors` [B, D], or [D].

        See `TreeSearch.search`.
        """
        return self._search.search(vectors, k)

    def neighbours(self, prefix: str, k: int) -> np.ndarray | None:
        """Numbers [<= k] of the queries nearest to an indexed prefix; None for another prefix.

        If `build` has computed fewer than k, they are searched for.
        """
        row = self.prefix_number(prefix)
        if row < 0:
            return None
        numbers = self._arrays["related"][row][:k]
        if len(numbers) < k and not (numbers < 0).any():
            vector = self.enhanced(prefix)
            assert vector is not None, "the prefix is indexed"
            numbers = self.search(vector, k)[0][0]
        return numbers[numbers >= 0]

    def nearby(self, config: AsOfConfig) -> Nearby:
        """The queries nearest to each query, as `build` computed them; and a cached function,
        prefix -> numbers of at most `config.around` queries near it, or of those that
        `config.source` gives, None if `config.around` is 0.
        """
        stored = self._arrays["similar"]
        similar = stored if stored.shape[1] else None
        if not config.around:
            return Nearby(similar)
        source = named("AsOfConfig.source", config.source, {}) if config.source else None

        @functools.lru_cache(maxsize=_CACHED)
        def near(prefix: str) -> tuple[int, ...]:
            if source:
                numbers = (self.queries.find(query) for query in source(prefix, config.around))
                return tuple(number for number in numbers if number >= 0)
            neighbours = self.neighbours(prefix, config.around)
            return () if neighbours is None else tuple(neighbours.tolist())

        return Nearby(similar, near)

    def related_to(self, vector: np.ndarray, k: int) -> list[str]:
        """The k queries nearest to a vector [D], nearest first; all if there are fewer."""
        numbers = self.search(vector, k)[0][0]
        return [self.queries[number] for number in numbers.tolist() if number >= 0]

    @classmethod
    def build(
        cls,
        folder: str,
        *,
        queries: Sequence[str],
        embeddings: np.ndarray,
        ids: np.ndarray,
        quantiser: Quantiser,
        prefixes: Sequence[str],
        prefix_vectors: np.ndarray,
        pair_offsets: np.ndarray,
        pair_queries: np.ndarray,
        fingerprints: Mapping[str, str],
        search_config: SearchConfig | None = None,
        enhance_config: EnhanceConfig | None = None,
        related: int = 32,
        similar: int = 0,
        vectors: str = "int8",
        workers: Callable[[Callable, Iterable], Iterable] = map,
    ) -> PrefixIndex:
        """Write an index into `folder`, all files or none, and open it. Prints progress.

        Other files in `folder` stay. Arrays are read block by block, so they may be memory maps.
        The ids and about 30 bytes a query are in memory at once.

        Args:
          folder: made if it is missing.
          queries: N indexed queries in byte order, each once.
          embeddings: [N, D] unit vectors.
          ids: [N, levels] semantic ids by `quantiser`; `resolve_collisions` may have moved some.
          quantiser: the quantiser of the ids.
          prefixes: P indexed prefixes in byte order, each once.
          prefix_vectors: [P, D] unit vectors e_p.
          pair_offsets: [P + 1]; prefix i has pair_queries[pair_offsets[i] : pair_offsets[i + 1]].
          pair_queries: numbers of co-occurring queries, best first for each prefix.
          fingerprints: of the inputs (encoder, ids); `load` compares them.
          search_config: the width of the search, here and after loading.
          enhance_config: settings of e_p*.
          related: number of related queries to compute for each indexed prefix.
          similar: number of nearest queries to compute for each query.
          vectors: the storage of the embeddings, "int8" or "float16".
          workers: as `map`, perhaps parallel; the function and its arguments are pickled.

        Raises:
          UserError: inputs that do not fit one another, or are out of order; no queries.
        """
        search_config = search_config or SearchConfig()
        enhance_config = enhance_config or EnhanceConfig()
        # The files appear in `folder` at the end, index.json last.
        with atomic_files(folder, index_files.ABOUT) as new:
            nodes = index_files.put_queries(
                new, queries, embeddings, ids, quantiser, search_config, vectors
            )
            index_files.put_prefixes(new, prefixes, prefix_vectors)
            index_files.put_pairs(new, pair_offsets, pair_queries, len(prefixes), len(queries))
            index_files.put(new, "related", np.zeros((len(prefixes), 0), np.int32))
            index_files.put(new, "similar", np.zeros((len(queries), 0), np.int32))
            about = (nodes, search_config, enhance_config, fingerprints)
            index_files.describe(new, *about)
            if related > 0:
                blocks = cls.load(new)._related_blocks(related)
                shape = (len(prefixes), related)
                index_files.put_blocks(new, "related", shape, np.int32, blocks)
                index_files.describe(new, *about)
            if similar > 0:
                blocks = _similar_blocks(new, len(queries), similar, workers)
                shape = (len(queries), similar)
                index_files.put_blocks(new, "similar", shape, np.int32, blocks)
                index_files.describe(new, *about)
        return cls.load(folder)

    def _related_blocks(self, k: int):
        """Numbers [block, k] of the related queries of all prefixes, block by block."""
        offsets = self._arrays["pair_offsets"]
        progress = Progress("index", len(self.prefixes), "prefixes looked up")
        for begin in range(0, len(self.prefixes), _BLOCK):
            end = min(begin + _BLOCK, len(self.prefixes))
            vectors = enhance(
                self._arrays["prefix_vectors"][begin:end],
                offsets[begin : end + 1],
                self._arrays["pair_queries"],
                self.vectors_of,
                self.enhance_config,
            )
            yield self.search(vectors, k)[0]
            progress.add(end - begin)
        progress.close()

    @classmethod
    def load(cls, folder: str, *, expect: Mapping[str, str] | None = None) -> PrefixIndex:
        """Open an index by memory map, read-only.

        Args:
          folder: written by `build`.
          expect: fingerprints in use now, by the names given to `build`.

        Raises:
          UserError: files that are missing or damaged, or a fingerprint that differs.
        """
        about = index_files.read_about(folder)
        for name, current in (expect or {}).items():
            stored = about["fingerprints"].get(name, "none")
            if stored != current:
                raise UserError(
                    f"{folder}: the prefix index was made with {name} {stored}, but {name} "
                    f"{current} is in use; run the index stage again."
                )
        arrays, queries, prefixes = index_files.open_arrays(folder, about)
        latent = about["search"]["measure"] == "latent"
        return cls(queries, prefixes, arrays, about, Quantiser.load(folder) if latent else None)


def _similar_blocks(
    folder: str, queries: int, k: int, workers: Callable[[Callable, Iterable], Iterable]
) -> Iterator[np.ndarray]:
    """The k queries nearest to each query, `[block, k]`, block by block."""
    with Progress("index", queries, "queries looked up") as progress:
        starts = range(0, queries, _QUERIES)
        for block in workers(_similar, [(folder, start, k) for start in starts]):
            yield block
            progress.add(len(block))


def _similar(task: tuple[str, int, int]) -> np.ndarray:
    """Numbers `[block, k]` of the queries nearest to the queries from a start on, without
    themselves, then -1.
    """
    folder, start, k = task
    index = PrefixIndex.load(folder)
    own = np.arange(start, min(start + _QUERIES, len(index)))
    numbers = index.search(index.vectors_of(own), k + 1)[0]
    order = np.argsort(numbers == own[:, None], axis=1, kind="stable")[:, :k]  # itself at the end
    return np.take_along_axis(numbers, order, axis=1)
