"""Embedding -> semantic id: a trained residual quantiser in numpy (PAPER.md section 2.4).

A small network maps an embedding to a latent. Each level takes the code nearest to the residual of
the levels before. Indexed queries and, in service, enhanced prefixes get their ids by the same
arithmetic. `rqvae` and `rq_kmeans` train quantisers.
"""

from __future__ import annotations

import functools
import os
import zipfile
from collections.abc import Sequence

import numpy as np

from onesug_jax.errors import UserError, check_refused
from onesug_jax.files import atomic_write, fingerprint, read_json, require_files, write_json

ARRAYS, ABOUT = "quantiser.npz", "quantiser.json"
ACTIVATIONS = ("relu", "gelu")
_FORMAT = 1
_ROWS = 8192  # rows at a time, so that the table of distances to the codes stays small

Layers = Sequence[tuple[np.ndarray, np.ndarray]]  # (weight [in, out], bias [out]) a layer


class Quantiser:
    """A residual quantiser, greedy from the first level to the last.

    Attributes:
      codebooks: [levels, codes, latent] float32.
      layers: the network from embedding to latent; without layers the embedding is the latent.
      decoder: the network from latent to embedding; without layers the latent is the embedding.
      activation: between layers, "relu" or "gelu" (its tanh form).
      encoder: fingerprint of the text encoder of the training embeddings.

    Examples:
      >>> import numpy as np
      >>> from onesug_jax import Quantiser
      >>> quantiser = Quantiser(np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.1, 0.0], [0.0, 0.1]]]))
      >>> quantiser.codes(np.array([[1.0, 0.1], [0.1, 1.0]])).tolist()
      [[0, 1], [1, 0]]
    """

    def __init__(
        self,
        codebooks: np.ndarray,
        layers: Layers = (),
        decoder: Layers = (),
        *,
        activation: str = "relu",
        encoder: str = "",
    ):
        if activation not in ACTIVATIONS:
            raise UserError(
                f"activation={activation!r}: expected one of {', '.join(ACTIVATIONS)}; choose one."
            )
        self.codebooks = np.ascontiguousarray(codebooks, np.float32)
        self.layers, self.decoder = _float32(layers), _float32(decoder)
        self.activation, self.encoder = activation, encoder
        self._squares = np.square(self.codebooks).sum(-1)
        # Transposed once, so that each product runs over memory in order.
        self._transposed = np.ascontiguousarray(self.codebooks.transpose(0, 2, 1))

    @property
    def levels(self) -> int:
        """Number of codes of an id."""
        return self.codebooks.shape[0]

    @property
    def size(self) -> int:
        """Codes a level."""
        return self.codebooks.shape[1]

    @property
    def width(self) -> int:
        """Width D of the embeddings."""
        return self.layers[0][0].shape[0] if self.layers else self.codebooks.shape[2]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any weight, code or setting."""
        return fingerprint(
            self._about(), *(part for named in self._arrays().items() for part in named)
        )

    def latents(self, embeddings: np.ndarray) -> np.ndarray:
        """Embeddings [B, D] -> latents [B, latent].

        Raises:
          UserError: embeddings of another width.
        """
        self._check_width(embeddings)
        return _apply(self.layers, np.asarray(embeddings, np.float32), self.activation)

    def codes(self, embeddings: np.ndarray) -> np.ndarray:
        """Embeddings [B, D], possibly a memory map -> ids [B, levels] uint16; of codes at equal
        distances the smaller.

        Raises:
          UserError: embeddings of another width.
        """
        self._check_width(embeddings)
        ids = np.empty((len(embeddings), self.levels), np.uint16)
        for start in range(0, len(ids), _ROWS):
            rows = slice(start, start + _ROWS)
            self._descend(self.latents(embeddings[rows]), ids[rows])
        return ids

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """Ids [B, l] of the first l levels -> sums of their codes, [B, latent]."""
        codes = np.asarray(codes)
        total = np.zeros((len(codes), self.codebooks.shape[2]), np.float32)
        for level in range(codes.shape[1]):
            total += self.codebooks[level, codes[:, level]]
        return total

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents from `reconstruct`, [B, latent] -> embeddings [B, D]."""
        return _apply(self.decoder, np.asarray(latents, np.float32), self.activation)

    def save(self, folder: str) -> None:
        """Write quantiser.npz and quantiser.json into `folder`."""
        with atomic_write(os.path.join(folder, ARRAYS)) as file:
            np.savez(file, **self._arrays())  # type: ignore[arg-type]  # its stub: allow_pickle
        about = {**self._about(), "fingerprint": self.fingerprint}
        write_json(os.path.join(folder, ABOUT), about, indent=1)

    @classmethod
    def load(cls, folder: str, expect_encoder: str | None = None) -> Quantiser:
        """Read a saved quantiser.

        Raises:
          UserError: files that are missing or damaged, or a text encoder other than
            `expect_encoder`.
        """
        paths = [os.path.join(folder, name) for name in (ARRAYS, ABOUT)]
        require_files(paths, "a saved quantiser", "train it again")
        try:
            about = read_json(paths[1], "a saved quantiser", "train it again")
            with np.load(paths[0], allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            quantiser = cls(
                arrays["codebooks"],
                _layers(arrays, "layers"),
                _layers(arrays, "decoder"),
                activation=about["activation"],
                encoder=about["encoder"],
            )
            if quantiser.fingerprint != about["fingerprint"]:
                raise ValueError(f"{ARRAYS} does not belong to {ABOUT}")
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            check_refused(folder, error)
            raise UserError(
                f"{folder}: the quantiser is damaged ({error}); train it again"
            ) from error
        if expect_encoder is not None and quantiser.encoder != expect_encoder:
            raise UserError(
                f"{folder}: the quantiser was trained on embeddings of text encoder "
                f"{quantiser.encoder!r}, but the text encoder here is {expect_encoder!r}; make the "
                "semantic ids again with this encoder"
            )
        return quantiser

    def _descend(self, residual: np.ndarray, ids: np.ndarray) -> None:
        """Fill `ids` [B, levels] for latents [B, latent], which are overwritten."""
        if not self.layers:
            residual = residual.copy()  # the latents are the caller's embeddings
        for level in range(self.levels):
            # |r - c|^2 without |r|^2, which is the same for every code.
            distances = residual @ self._transposed[level]
            distances *= -2
            distances += self._squares[level]
            ids[:, level] = nearest = distances.argmin(1)
            residual -= self.codebooks[level, nearest]

    def _check_width(self, embeddings: np.ndarray) -> None:
        if np.ndim(embeddings) != 2 or np.shape(embeddings)[1] != self.width:
            raise UserError(
                f"embeddings of shape {list(np.shape(embeddings))}: this quantiser takes "
                f"[B, {self.width}]; use the text encoder it was trained with."
            )

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {"codebooks": self.codebooks}
        for name, layers in (("layers", self.layers), ("decoder", self.decoder)):
            for number, (weight, bias) in enumerate(layers):
                arrays |= {f"{name}_{number}_weight": weight, f"{name}_{number}_bias": bias}
        return arrays

    def _about(self) -> dict:
        return {"format": _FORMAT, "activation": self.activation, "encoder": self.encoder}


def _apply(layers: Layers, x: np.ndarray, activation: str) -> np.ndarray:
    for number, (weight, bias) in enumerate(layers):
        if number:
            x = _activate(x, activation)
        x = x @ weight
        x += bias
    return x


def _activate(x: np.ndarray, activation: str) -> np.ndarray:
    if activation == "relu":
        return np.maximum(x, 0, out=x)
    return 0.5 * x * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + 0.044715 * x**3)))


def _float32(layers: Layers) -> list[tuple[np.ndarray, np.ndarray]]:
    convert = functools.partial(np.ascontiguousarray, dtype=np.float32)
    return [(convert(weight), convert(bias)) for weight, bias in layers]


def _layers(arrays: dict[str, np.ndarray], name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    layers: list[tuple[np.ndarray, np.ndarray]] = []
    while (weight := arrays.get(f"{name}_{len(layers)}_weight")) is not None:
        layers.append((weight, arrays[f"{name}_{len(layers)}_bias"]))
    return layers
