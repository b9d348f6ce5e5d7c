"""The prefix index: enhanced prefixes e_p*, and the indexed queries nearest to them.

PAPER.md section 2, points 3 and 5. One folder, read by memory map, holds the indexed queries under
their semantic ids with their vectors (`tree_search.py`), and for each indexed prefix its own
vector, the queries that co-occur with it and, computed in advance, the queries nearest to it. Any
other prefix is searched for by its plain vector: `related_to`.

e_p* is not stored: `enhance.py` mixes it on demand from the stored vectors. `index_files.py` writes
the folder. Serving needs numpy alone: no text encoder and, unless the search measures latents, no
quantiser.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.files import atomic_files
from onesug_jax.import_path import named
from onesug_jax.logs.asof.config import AsOfConfig
from onesug_jax.logs.texts import Texts
from onesug_jax.progress import Progress
from onesug_jax.retrieval import index_files
from onesug_jax.retrieval.enhance import EnhanceConfig, enhance
from onesug_jax.retrieval.id_tree import IdTree
from onesug_jax.retrieval.tree_search import SearchConfig, StoredVectors, TreeSearch
from onesug_jax.semantic_ids.quantiser import Quantiser

_CACHED = 65_536  # prefixes
_BLOCK = 512  # prefixes looked up between two progress lines, at least


class PrefixIndex:
    """N indexed queries and P indexed prefixes; made by `build`, opened by `load`.

    Attributes:
      queries: the indexed queries in byte order; their numbers are places in it.
      prefixes: the indexed prefixes in byte order.
      fingerprints: what the index was made from, as given to `build`.

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
        """Size on disk of all that grows with the queries, divided by them."""
        names = ("rows", "places", "starts", "children", "codes", "norms", "vectors", "scales")
        size = sum(self._arrays[name].nbytes for name in names)
        return (size + self.queries.block.nbytes + self.queries.offsets.nbytes) / len(self)

    @property
    def prefix_vectors(self) -> np.ndarray:
        """Unit vectors e_p, `[P, D]`, by number."""
        return self._arrays["prefix_vectors"]

    def prefix_number(self, prefix: str) -> int:
        """The number of an indexed prefix, or -1."""
        return self.prefixes.find(prefix)

    def vectors_of(self, numbers: np.ndarray) -> np.ndarray:
        """Stored unit vectors, float32 [n, D], of the queries of these numbers [n]."""
        places = self._arrays["places"].take(numbers)
        rows = self._vectors.rows.take(places, axis=0).astype(np.float32)
        return rows * self._vectors.scales.take(places)[:, None]

    def enhanced(self, prefix: str) -> np.ndarray | None:
        """e_p*, float32 [D] of length 1, of an indexed prefix; None for another."""
        row = self.prefix_number(prefix)
        if row < 0:
            return None
        begin, end = self._arrays["pair_offsets"][row : row + 2]
        numbers = self._arrays["pair_queries"][begin:end]
        own = self._arrays["prefix_vectors"][row : row + 1]
        offsets = np.array([0, len(numbers)])
        return enhance(own, offsets, numbers, self.vectors_of, self.enhance_config)[0]

    def search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers [B, k] of the nearest indexed queries, -1 filled, and cosines [B, k], -inf there.

        See `TreeSearch.search`; `vectors` [B, D], or [D] for B = 1.
        """
        return self._search.search(vectors, k)

    def neighbours(self, prefix: str, k: int) -> np.ndarray | None:
        """Numbers [<= k] of the queries nearest to an indexed prefix; None for another.

        They are looked up where `build` has worked out fewer.
        """
        row = self.prefix_number(prefix)
        if row < 0:
            return None
        found = self._arrays["related"][row][:k]
        if len(found) < k and not (found < 0).any():
            vector = self.enhanced(prefix)
            assert vector is not None, "the prefix is indexed"
            found = self.search(vector, k)[0][0]
        return found[found >= 0]

    def around(self, config: AsOfConfig) -> Callable[[str], tuple[int, ...]] | None:
        """Prefix -> the numbers of at most `config.around` queries near it, or of those that
        `config.source` gives, cached; None: none are wanted.
        """
        if not config.around:
            return None
        source = named("AsOfConfig.source", config.source, {}) if config.source else None

        @functools.lru_cache(maxsize=_CACHED)
        def near(prefix: str) -> tuple[int, ...]:
            if source:
                found = (self.queries.find(query) for query in source(prefix, config.around))
                return tuple(number for number in found if number >= 0)
            numbers = self.neighbours(prefix, config.around)
            return () if numbers is None else tuple(numbers.tolist())

        return near

    def related_to(self, vector: np.ndarray, k: int) -> list[str]:
        """At most k queries nearest to any vector [D], nearest first."""
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
        vectors: str = "int8",
    ) -> PrefixIndex:
        """Write an index into `folder`, whole or not at all, and open it. Prints progress.

        Other files in `folder` stay. All arrays are read block by block, so memory maps will do;
        in memory at once are the ids and about 30 bytes a query.

        Args:
          folder: made if it is missing.
          queries: N indexed queries in byte order, each once.
          embeddings: [N, D] unit vectors.
          ids: [N, levels] semantic ids, made by `quantiser` (a resolver may have moved some).
          quantiser: what the ids are codes of.
          prefixes: P indexed prefixes in byte order, each once.
          prefix_vectors: [P, D] unit vectors e_p.
          pair_offsets: [P + 1]; row i of the pairs is pair_offsets[i] : pair_offsets[i + 1].
          pair_queries: row numbers of co-occurring queries, best first for each prefix.
          fingerprints: of what went in (encoder, ids); `load` compares them.
          search_config: how wide to look, here and after loading.
          enhance_config: how e_p* is mixed.
          related: how many related queries to work out for each indexed prefix, a look-up each.
          vectors: how they are stored, "int8" or "float16".

        Raises:
          UserError: inputs that do not fit one another, or are out of order; no queries.
        """
        search_config = search_config or SearchConfig()
        enhance_config = enhance_config or EnhanceConfig()
        # What is written appears at the end, index.json last: without it there is no index.
        with atomic_files(folder, index_files.ABOUT) as new:
            given = (queries, embeddings, ids, quantiser, search_config, vectors)
            nodes = index_files.put_queries(new, *given)
            index_files.put_prefixes(new, prefixes, prefix_vectors)
            index_files.put_pairs(new, pair_offsets, pair_queries, len(prefixes), len(queries))
            index_files.put(new, "related", np.zeros((len(prefixes), 0), np.int32))
            about = (nodes, search_config, enhance_config, fingerprints)
            index_files.describe(new, *about)
            if related > 0:
                blocks = cls.load(new)._related_blocks(related)
                shape = (len(prefixes), related)
                index_files.put_blocks(new, "related", shape, np.int32, blocks)
                index_files.describe(new, *about)
        return cls.load(folder)

    def _related_blocks(self, k: int):
        """Numbers [block, k] of the queries related to all prefixes, block by block."""
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
          folder: what `build` wrote.
          expect: fingerprints of what is in use now, by the names `build` was given.

        Raises:
          UserError: files that are missing or damaged, or a fingerprint that differs.
        """
        about = index_files.read_about(folder)
        for name, now in (expect or {}).items():
            made_with = about["fingerprints"].get(name, "none")
            if made_with != now:
                raise UserError(
                    f"{folder}: the prefix index was made with {name} {made_with}, but {name} "
                    f"{now} is in use; run the index stage again."
                )
        arrays, queries, prefixes = index_files.open_arrays(folder, about)
        latent = about["search"]["measure"] == "latent"
        return cls(queries, prefixes, arrays, about, Quantiser.load(folder) if latent else None)
