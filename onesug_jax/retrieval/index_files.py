"""The files of a prefix index, checked when they are opened.

Every array is one .npy file, opened by memory map; texts are files of `logs.texts`. index.json has
the expected shapes, the settings of the search and the fingerprints of the inputs; it is written
last, so a folder without it holds no index. `prefix_index.py` and `id_tree.py` use the arrays
(PAPER.md section 2).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from onesug_jax.errors import UserError, check_refused
from onesug_jax.files import atomic_path, read_json, write_json
from onesug_jax.logs.texts import Texts
from onesug_jax.progress import Progress
from onesug_jax.retrieval.enhance import EnhanceConfig
from onesug_jax.retrieval.id_tree import IdTree, expected_codewords
from onesug_jax.retrieval.tree_search import KINDS, SearchConfig, StoredVectors
from onesug_jax.semantic_ids.quantiser import Quantiser

ABOUT = "index.json"
_FORMAT = 2
_BLOCK = 8192  # vectors read, compressed and written at a time
ARRAYS = (
    *("rows", "places", "starts", "children", "codes", "norms", "vectors", "scales", "codewords"),
    *("prefix_vectors", "pair_offsets", "pair_queries", "related", "similar"),
)


def put(folder: str, name: str, array: np.ndarray) -> None:
    """Write one array."""
    np.save(os.path.join(folder, f"{name}.npy"), array)


def put_blocks(
    folder: str, name: str, shape: tuple, dtype: Any, blocks: Iterable[np.ndarray]
) -> None:
    """Write one array from blocks of its rows."""
    # Not in place: the blocks may be computed from a memory map of the present file.
    with atomic_path(os.path.join(folder, f"{name}.npy")) as path:
        out = np.lib.format.open_memmap(path, "w+", dtype, shape)
        at = 0
        for block in blocks:
            out[at : at + len(block)] = block
            at += len(block)
        out.flush()


def put_queries(
    folder: str,
    queries: Sequence[str],
    embeddings: np.ndarray,
    ids: np.ndarray,
    quantiser: Quantiser,
    config: SearchConfig,
    kind: str,
) -> list[int]:
    """Write the texts of the queries, their tree, their vectors in the order of the tree, and the
    codewords. Returns the number of nodes of each level of the tree.
    """
    if kind not in KINDS:
        raise UserError(f"vectors={kind!r}: expected one of {tuple(KINDS)}.")
    _put_texts(folder, "queries", queries, embeddings=embeddings, ids=ids)
    if not len(queries):
        raise UserError(
            "queries: expected at least one indexed query, found none. Mine a log with rows."
        )
    words = quantiser.codebooks
    if config.measure == "cosine":
        words = expected_codewords(ids, embeddings, *words.shape[:2])
    tree = IdTree.build(ids, words)
    for name, array in tree.arrays().items():
        put(folder, name, array)
    places = np.empty_like(tree.rows)
    places[tree.rows] = np.arange(len(places), dtype=places.dtype)
    put(folder, "places", places)
    put(folder, "codewords", words)
    scales = np.empty(len(tree), np.float32)
    progress = Progress("index", len(tree), "vectors stored")

    def blocks() -> Iterable[np.ndarray]:
        for begin in range(0, len(tree), _BLOCK):
            rows = tree.rows[begin : begin + _BLOCK]
            stored = StoredVectors.of(_finite(embeddings[rows], rows, "embeddings"), kind)
            scales[begin : begin + _BLOCK] = stored.scales
            yield stored.rows
            progress.add(len(rows))
        progress.close()

    put_blocks(folder, "vectors", (len(tree), embeddings.shape[1]), KINDS[kind], blocks())
    put(folder, "scales", scales)
    quantiser.save(folder)
    return tree.nodes()


def put_prefixes(folder: str, prefixes: Sequence[str], vectors: np.ndarray) -> None:
    """Write the texts of the prefixes and their vectors e_p, as float16."""
    _put_texts(folder, "prefixes", prefixes, prefix_vectors=vectors)
    numbers = np.arange(len(prefixes))
    blocks = (numbers[begin : begin + _BLOCK] for begin in range(0, len(numbers), _BLOCK))
    put_blocks(
        folder,
        "prefix_vectors",
        np.shape(vectors),
        np.float16,
        (_finite(vectors[block], block, "prefix_vectors") for block in blocks),
    )


def put_pairs(
    folder: str, offsets: np.ndarray, numbers: np.ndarray, prefixes: int, queries: int
) -> None:
    """Write the queries that co-occur with each prefix.

    Args:
      offsets, numbers: as `PrefixIndex.build` takes them.
      prefixes, queries: how many there are.
    """
    offsets, numbers = np.asarray(offsets), np.asarray(numbers)
    fits = len(offsets) == prefixes + 1 and int(offsets[0]) == 0
    if not fits or (np.diff(offsets) < 0).any() or int(offsets[-1]) != len(numbers):
        raise UserError(
            f"pair_offsets: expected one more than prefixes, rising from 0 to {len(numbers)} "
            f"(the pairs), found {len(offsets)} numbers ending in {offsets[-1:].tolist()}."
        )
    if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < queries:
        raise UserError(
            f"pair_queries: expected row numbers from 0 to {queries - 1}, found "
            f"{int(numbers.min())} to {int(numbers.max())}. Mine pairs and queries in one run."
        )
    put(folder, "pair_offsets", offsets.astype(np.int64))
    put(folder, "pair_queries", numbers.astype(np.int32))


def describe(
    folder: str,
    nodes: Sequence[int],
    search: SearchConfig,
    enhance: EnhanceConfig,
    fingerprints: Mapping[str, str],
) -> None:
    """Write index.json for the files in `folder`."""
    arrays = {}
    for name in ARRAYS:
        array = np.load(os.path.join(folder, f"{name}.npy"), mmap_mode="r")
        arrays[name] = [array.dtype.name, list(array.shape)]
    about = {
        "format": _FORMAT,
        "queries": arrays["rows"][1][0],
        "prefixes": arrays["prefix_vectors"][1][0],
        "nodes": list(nodes),
        "arrays": arrays,
        "search": dataclasses.asdict(search),
        "enhance": dataclasses.asdict(enhance),
        "fingerprints": dict(fingerprints),
    }
    write_json(os.path.join(folder, ABOUT), about, indent=1, ensure_ascii=False)


def _put_texts(folder: str, name: str, texts: Sequence[str], **arrays: np.ndarray) -> None:
    """Write texts; UserError unless every array has one row a text."""
    for key, array in arrays.items():
        if np.ndim(array) != 2 or len(array) != len(texts):
            raise UserError(
                f"{key}: expected one row for each of {len(texts)} {name}, found shape "
                f"{np.shape(array)}. Make them in one run."
            )
    Texts.write(*_text_files(folder, name), texts, name)


def _text_files(folder: str, name: str) -> tuple[str, str]:
    return os.path.join(folder, f"{name}.txt"), os.path.join(folder, f"{name}.npy")


def _finite(block: np.ndarray, rows: np.ndarray, name: str) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(bad):
        raise UserError(
            f"{name}, row {int(rows[bad[0]])}: expected finite numbers, found NaN or infinity. "
            "Look for a diverged encoder."
        )
    return block


def read_about(folder: str) -> dict[str, Any]:
    """The contents of index.json; UserError if it is missing or of another format."""
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
    """Arrays, queries and prefixes by memory map; UserError if one differs from index.json."""
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
        check_refused(folder, error)
        raise UserError(
            f"{folder}: the prefix index is damaged ({error}); run the index stage again."
        ) from error
    return arrays, texts[0], texts[1]
