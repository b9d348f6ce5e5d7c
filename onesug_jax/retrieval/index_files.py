"""The files of a prefix index: written beside the old ones, moved at the end, checked on opening.

Every array is one .npy file, so that it opens by memory map; texts are `logs.texts`'s; index.json
says what shapes to expect, how to search and what the index was made from. It goes away first and
comes back last: a folder without it holds no index. What the arrays mean is `prefix_index.py`'s
and `id_tree.py`'s (PAPER.md section 2).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from onesug_jax.errors import UserError, check_refused
from onesug_jax.files import atomic_files, atomic_path, read_json, write_json
from onesug_jax.logs.texts import Texts
from onesug_jax.progress import Progress
from onesug_jax.retrieval.enhance import EnhanceConfig
from onesug_jax.retrieval.id_tree import IdTree, expected_codewords, ranges
from onesug_jax.retrieval.tree_search import KINDS, SearchConfig, StoredVectors
from onesug_jax.semantic_ids.quantiser import Quantiser

ABOUT = "index.json"
_FORMAT = 1
_BLOCK = 8192  # vectors read, turned and written at a time
ARRAYS = (
    *("rows", "places", "starts", "children", "codes", "norms", "vectors", "scales", "codewords"),
    *("prefix_vectors", "pair_offsets", "pair_queries", "related"),
)


class Writer:
    """Writes the parts of an index out of sight; leaving the context without error shows them.

    Attributes:
      path: where the files are while they are being written.
      query_rows, prefix_rows: which rows of the inputs are indexed (all, unless some are repeated).
    """

    def __init__(self, folder: str):
        self.folder = folder
        self.query_rows = self.prefix_rows = np.zeros(0, np.int64)
        self._nodes: list[int] = []
        self._given: dict[str, int] = {}  # how many texts the caller gave, repeated ones too

    def __enter__(self) -> Writer:
        with contextlib.ExitStack() as stack:
            self.path = stack.enter_context(atomic_files(self.folder, ABOUT))
            self._publish = stack.pop_all()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._publish.__exit__(kind, error, traceback)

    def put(self, name: str, array: np.ndarray) -> None:
        """Write one array."""
        np.save(os.path.join(self.path, f"{name}.npy"), array)

    def put_blocks(self, name: str, shape: tuple, dtype: Any, blocks: Iterable[np.ndarray]) -> None:
        """Write one array from blocks of its rows."""
        # Not in place: a memory map of the present file may be what makes the blocks.
        with atomic_path(os.path.join(self.path, f"{name}.npy")) as path:
            out = np.lib.format.open_memmap(path, "w+", dtype, shape)
            at = 0
            for block in blocks:
                out[at : at + len(block)] = block
                at += len(block)
            out.flush()

    def put_queries(
        self, queries: Sequence[str], embeddings: np.ndarray, ids: np.ndarray, kind: str
    ) -> None:
        """Texts of the queries; vectors come with the tree, whose order they have."""
        if kind not in KINDS:
            raise UserError(f"vectors={kind!r}: expected one of {tuple(KINDS)}.")
        self._kind = kind
        self.query_rows = self._texts("queries", queries, embeddings=embeddings, ids=ids)
        if not len(self.query_rows):
            raise UserError(
                "queries: expected at least one indexed query, found none. Mine a log with rows."
            )

    def put_tree(
        self, ids: np.ndarray, embeddings: np.ndarray, quantiser: Quantiser, config: SearchConfig
    ) -> None:
        """The tree over the indexed queries, their vectors in its order, and codewords."""
        if len(self.query_rows) != len(ids):
            ids = ids[self.query_rows]
        if config.measure == "cosine":
            shown = _Rows(embeddings, self.query_rows)
            words = expected_codewords(ids, shown, *quantiser.codebooks.shape[:2])
        else:
            words = quantiser.codebooks
        tree = IdTree.build(ids, words)
        self._nodes = tree.nodes()
        for name, array in tree.arrays().items():
            self.put(name, array)
        places = np.empty_like(tree.rows)
        places[tree.rows] = np.arange(len(places), dtype=places.dtype)
        self.put("places", places)
        self.put("codewords", words)
        scales = np.empty(len(tree), np.float32)
        progress = Progress("index", len(tree), "vectors stored")

        def stored() -> Iterable[np.ndarray]:
            for begin in range(0, len(tree), _BLOCK):
                rows = self.query_rows[tree.rows[begin : begin + _BLOCK]]
                block = _finite(embeddings[rows], rows, "embeddings")
                stored = StoredVectors.of(block, self._kind)
                scales[begin : begin + _BLOCK] = stored.scales
                yield stored.rows
                progress.add(len(rows))
            progress.close()

        self.put_blocks("vectors", (len(tree), embeddings.shape[1]), KINDS[self._kind], stored())
        self.put("scales", scales)
        quantiser.save(self.path)

    def put_prefixes(self, prefixes: Sequence[str], vectors: np.ndarray) -> None:
        """Texts and own vectors e_p of the prefixes, as float16."""
        rows = self.prefix_rows = self._texts("prefixes", prefixes, prefix_vectors=vectors)
        blocks = (rows[begin : begin + _BLOCK] for begin in range(0, len(rows), _BLOCK))
        self.put_blocks(
            "prefix_vectors",
            (len(rows), np.shape(vectors)[1]),
            np.float16,
            (_finite(vectors[block], block, "prefix_vectors") for block in blocks),
        )

    def put_pairs(self, offsets: np.ndarray, numbers: np.ndarray) -> None:
        """Queries that co-occur with each indexed prefix, renumbered where some were dropped."""
        offsets, numbers = np.asarray(offsets), np.asarray(numbers)
        fits = len(offsets) == self._given["prefixes"] + 1 and int(offsets[0]) == 0
        if not fits or (np.diff(offsets) < 0).any() or int(offsets[-1]) != len(numbers):
            raise UserError(
                f"pair_offsets: expected one more than prefixes, rising from 0 to {len(numbers)} "
                f"(the pairs), found {len(offsets)} numbers ending in {offsets[-1:].tolist()}."
            )
        given = self._given["queries"]
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < given:
            raise UserError(
                f"pair_queries: expected row numbers from 0 to {given - 1}, found "
                f"{int(numbers.min())} to {int(numbers.max())}. Mine pairs and queries in one run."
            )
        many = np.diff(offsets)[self.prefix_rows]
        places = ranges(np.asarray(offsets[:-1], np.int64)[self.prefix_rows], many)
        renumbered = np.searchsorted(self.query_rows, numbers[places], side="right") - 1
        self.put("pair_offsets", np.concatenate([[0], np.cumsum(many)]).astype(np.int64))
        self.put("pair_queries", renumbered.astype(np.int32))

    def describe(
        self, search: SearchConfig, enhance: EnhanceConfig, fingerprints: Mapping[str, str]
    ) -> None:
        """Write index.json about the files that are there."""
        arrays = {}
        for name in ARRAYS:
            array = np.load(os.path.join(self.path, f"{name}.npy"), mmap_mode="r")
            arrays[name] = [array.dtype.name, list(array.shape)]
        about = {
            "format": _FORMAT,
            "queries": len(self.query_rows),
            "prefixes": len(self.prefix_rows),
            "nodes": self._nodes,
            "arrays": arrays,
            "search": dataclasses.asdict(search),
            "enhance": dataclasses.asdict(enhance),
            "fingerprints": dict(fingerprints),
        }
        write_json(os.path.join(self.path, ABOUT), about, indent=1, ensure_ascii=False)

    def _texts(self, name: str, texts: Sequence[str], **beside: np.ndarray) -> np.ndarray:
        """Write texts; UserError unless the arrays have a row for each."""
        for what, array in beside.items():
            if np.ndim(array) != 2 or len(array) != len(texts):
                raise UserError(
                    f"{what}: expected one row for each of {len(texts)} {name}, found shape "
                    f"{np.shape(array)}. Make them in one run."
                )
        self._given[name] = len(texts)
        rows = Texts.write(*_text_files(self.path, name), texts, name)
        if len(rows) < len(texts):
            print(f"index: left out {len(texts) - len(rows):,} repeated {name}")
        return rows


class _Rows:
    """Some rows of an array, as an array; nothing is copied until it is sliced."""

    def __init__(self, array: np.ndarray, rows: np.ndarray):
        self._array, self._rows = array, rows
        self.shape = (len(rows), *array.shape[1:])

    def __getitem__(self, part: slice) -> np.ndarray:
        return self._array[self._rows[part]]


def _text_files(folder: str, name: str) -> tuple[str, str]:
    return os.path.join(folder, f"{name}.txt"), os.path.join(folder, f"{name}.npy")


def _finite(block: np.ndarray, rows: np.ndarray, what: str) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(bad):
        raise UserError(
            f"{what}, row {int(rows[bad[0]])}: expected finite numbers, found others. Look for a "
            "diverged encoder."
        )
    return block


def read_about(folder: str) -> dict[str, Any]:
    """What index.json says; UserError if there is none, or none of this format."""
    path = os.path.join(folder, ABOUT)
    about = read_json(path, "a finished prefix index", "run the index stage again.")
    if about.get("format") != _FORMAT:
        raise UserError(
            f"{path}: expected format {_FORMAT}, found {about.get('format')!r}; run the index "
            "stage again."
        )
    return about


def open_arrays(
    folder: str, about: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], Texts, Texts]:
    """Arrays, queries and prefixes by memory map; UserError if any is not as index.json says."""
    try:
        arrays = {}
        for name, (dtype, shape) in about["arrays"].items():
            path = os.path.join(folder, f"{name}.npy")
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.dtype.name != dtype or list(array.shape) != shape:
                raise ValueError(
                    f"{name}.npy: expected {dtype} {shape}, found {array.dtype} {list(array.shape)}"
                )
            arrays[name] = array.view(np.ndarray)  # still on disk, without memmap's overhead
        texts = []
        for name in ("queries", "prefixes"):
            texts.append(Texts.load(*_text_files(folder, name)))
            if len(texts[-1]) != about[name]:
                raise ValueError(f"{name}.txt: expected {about[name]}, found {len(texts[-1])}")
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise _damaged(folder, error) from error
    return arrays, texts[0], texts[1]


def _damaged(folder: str, error: Exception) -> UserError:
    check_refused(folder, error)
    return UserError(f"{folder}: the prefix index is damaged ({error}); run the index stage again.")
