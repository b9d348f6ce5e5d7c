"""How a prefix's candidates are ranked: a small network over what is known of each of them.

    score(q) = w_2 . silu(W_1 z + b_1),    z = (features(q) - mean) / scale

The features are how often the query was searched, how like it is to what this user searched before
and in this very visit (by the aligned encoder and by shared words), and how much likelier people of
this profile search it. `rank_training` learns the weights from the log's own searches. Numpy only:
serving reads this.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.files import atomic_write
from onesug_jax.logs.ages import of_visit

FILE = "ranker.npz"
FEATURES = (
    "log_count",  # searches of the query
    "log_place",  # its place in the pool by searches
    "typed",  # whether it starts with the prefix as it was typed
    "prefix_length",
    "missing",  # characters still to be typed
    "words",
    "past",  # queries in the user's history
    "cosine_most",  # likeness to the history by the encoder: of the most like query ..
    "cosine_latest",  # .. the newest ..
    "cosine_mean",  # .. on average, and of the most like where older ones count less
    "cosine_decayed",
    "overlap_most",  # the same by shared words
    "overlap_latest",
    "repeated",  # whether the history holds it, and 1 / (1 + how far back)
    "repeated_place",
    "since",  # log of the minutes since the newest query of the history
    "visit",  # queries of this visit: each counts the less the older it is
    "cosine_visit",  # likeness to them by the encoder: of the most like ..
    "cosine_visit_mean",  # .. and on average
    "overlap_visit",  # of the most like by shared words
    "profile",  # log of how much likelier it is under the profile
)
_DECAY = 0.95
_MONTH = 43_200.0  # minutes; longer ago is as long


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What is known of the n candidates of a request whose user searched H queries before.

    Attributes:
      counts: `[n]`, searches; fractions where a slip of the finger was corrected.
      places: `[n]`, each one's place by searches among all that the prefix may lead to, from 0.
      typed: `[n]`, whether each starts with the prefix as it was typed.
      lengths, words: `[n]`, characters and words of each.
      cosines, overlaps: `[n, H]`, likeness to each earlier query, newest first.
      same: `[n, H]`, whether it is that query.
      minutes: `[H]`, how long ago each was searched.
      lift: `[n]`, log of how much likelier it is under the user's profile.
      prefix_length: characters typed.
    """

    counts: np.ndarray
    places: np.ndarray
    typed: np.ndarray
    lengths: np.ndarray
    words: np.ndarray
    cosines: np.ndarray
    overlaps: np.ndarray
    same: np.ndarray
    minutes: np.ndarray
    lift: np.ndarray
    prefix_length: int

    def features(self) -> np.ndarray:
        """float32 `[n, F]`, in the order of FEATURES."""
        n, past = self.cosines.shape
        nothing, one = np.zeros(n), np.ones(n)
        back = 1 / (1.0 + np.arange(past))
        visit = of_visit(self.minutes)
        columns = {
            "log_count": np.log(self.counts),
            "log_place": np.log1p(self.places),
            "typed": self.typed,
            "prefix_length": one * self.prefix_length,
            "missing": self.lengths - self.prefix_length,
            "words": self.words,
            "past": one * past,
            "cosine_most": self.cosines.max(axis=1, initial=0.0),
            "cosine_latest": self.cosines[:, 0] if past else nothing,
            "cosine_mean": self.cosines.mean(axis=1) if past else nothing,
            "cosine_decayed": (self.cosines * _DECAY ** np.arange(past)).max(axis=1, initial=0.0),
            "overlap_most": self.overlaps.max(axis=1, initial=0.0),
            "overlap_latest": self.overlaps[:, 0] if past else nothing,
            "repeated": self.same.any(axis=1),
            "repeated_place": (self.same * back).max(axis=1, initial=0.0),
            "since": one * np.log1p(min(self.minutes[0], _MONTH) if past else _MONTH),
            "visit": one * visit.sum(),
            "cosine_visit": (self.cosines * visit).max(axis=1, initial=0.0),
            "cosine_visit_mean": self.cosines @ visit / max(visit.sum(), 1.0),
            "overlap_visit": (self.overlaps * visit).max(axis=1, initial=0.0),
            "profile": self.lift,
        }
        return np.stack([columns[name] for name in FEATURES], axis=1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Ranker:
    """The network.

    Attributes:
      mean, scale: `[F]`; first `[F, H]`, bias `[H]`, last `[H]`: all float32.
      encoder: fingerprint of the text encoder behind the cosines.
    """

    mean: np.ndarray
    scale: np.ndarray
    first: np.ndarray
    bias: np.ndarray
    last: np.ndarray
    encoder: str

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Scores `[n]` of candidates `[n, F]`: log-probabilities but for a constant."""
        hidden = (features - self.mean) / self.scale @ self.first + self.bias
        return hidden * 0.5 * (1 + np.tanh(hidden / 2)) @ self.last  # silu, without overflow

    def save(self, folder: str) -> None:
        """Into folder/ranker.npz."""
        with atomic_write(os.path.join(folder, FILE)) as file:
            np.savez(file, features=np.array(FEATURES), **dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: str, *, expect_encoder: str) -> Ranker | None:
        """The ranker in `folder`; None where none was trained.

        Raises:
          UserError: it was trained on another encoder's vectors, or on other features.
        """
        path = os.path.join(folder, FILE)
        if not os.path.exists(path):
            return None
        with np.load(path) as saved:
            stored = {name: saved[name] for name in saved.files}
        features, encoder = tuple(stored.pop("features").tolist()), str(stored.pop("encoder"))
        _same(path, "features", FEATURES, features)
        _same(path, "the vectors of encoder", expect_encoder, encoder)
        return cls(encoder=encoder, **stored)


def _same(path: str, what: str, wanted: Sequence[str], found: Sequence[str]) -> None:
    if found != wanted:
        raise UserError(f"{path} ranks by {what} {found}, in use are {wanted}: run rank again.")
