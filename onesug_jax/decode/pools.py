"""What a request's list may be chosen from, laid out for scoring (`score.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from onesug_jax.decode.beam import BeamConfig
from onesug_jax.decode.known import ClosedSet, TextsOf
from onesug_jax.decode.score import ScoreConfig, Trees, plant
from onesug_jax.decode.shapes import Shapes
from onesug_jax.tasks.features import Featurizer, Request


@dataclasses.dataclass(frozen=True)
class Pool:
    """What one request's list is chosen from.

    Attributes:
      tree: the token sequences; ends: `[C]` the node at which each ends.
      texts: of the candidates.
      complete: whether nothing else could be in the list.
    """

    tree: Trees
    ends: np.ndarray
    texts: Sequence[str]
    complete: bool = False

    @property
    def nodes(self) -> int:
        """Beginnings in all."""
        return len(self.tree.tokens)


class Pools:
    """Chooses and lays out the pool of a request.

    Args:
      known: the closed set, where lists are kept to one of texts; targets: `[N, T]` what the model
        writes for each, its tokens or those of its semantic id; both None for an open one.
      beams, scoring: how many beams, and candidates, there are.
    """

    def __init__(
        self,
        known: ClosedSet | None,
        targets: np.ndarray | None,
        featurizer: Featurizer,
        beams: BeamConfig,
        scoring: ScoreConfig,
    ):
        self.targets = targets
        self._known, self._featurizer = known, featurizer
        self._beams, self._scoring = beams, scoring

    @property
    def depth(self) -> int:
        """Most tokens of a candidate."""
        return self._beams.max_length if self.targets is None else self.targets.shape[1]

    def of(self, request: Request, mode: str, shapes: Shapes) -> Pool | None:
        """What this request is answered from without beams, or beside them; None: by beams."""
        most, known = self._scoring.candidates, self._known
        if known is None:
            found = self._open(request.candidates[:most]) if mode != "beam" else {}
            tokens = list(found.values())
            return _fitting(np.stack(tokens), list(found), False, shapes) if found else None
        assert self.targets is not None, "of a closed set"
        beams = self._beams.beams
        ranks = known.all_of(request.prefix, beams if mode == "beam" else max(beams, most))
        complete = ranks is not None
        if ranks is None and mode != "beam":
            ranks = known.among(request.prefix, request.candidates[:most])
        if ranks is None or not len(ranks):
            return None
        pool = _fitting(self.targets[ranks], TextsOf(known.texts, ranks), complete, shapes)
        return pool if pool.complete or mode != "beam" else None

    def _open(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Target ids `[T]` of the texts that beams could write, where the set is open."""
        found = {}
        for text in texts:
            ids = self._featurizer.target(text)
            if 1 < len(ids) <= self.depth:
                found[text] = np.pad(ids, (0, self.depth - len(ids)))
        return found


def _fitting(tokens: np.ndarray, texts: Sequence[str], complete: bool, shapes: Shapes) -> Pool:
    """A pool of as many candidates, from the first on, as the largest tree holds."""
    pool = Pool(*plant(tokens), texts, complete)
    while shapes.nodes and pool.nodes > shapes.nodes[-1] and len(tokens) > 1:
        tokens = tokens[: len(tokens) * 3 // 4]
        pool = Pool(*plant(tokens), texts, False)
    return pool
