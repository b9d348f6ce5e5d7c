"""The place of a training's states: its folder, or a bucket."""

from collections.abc import Callable
from dataclasses import dataclass

CHECKPOINTS, BEST = "checkpoints", "best"


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class States:
    """The folder in which orbax writes `checkpoints/` and `best/`.

    Attributes:
      url: of a folder in a bucket; "": the training's own folder.
      push: uploads the reports in the training's folder; the primary calls it before a checkpoint.
      fetch: downloads `best/`, or else `checkpoints/`, into the training's folder.
    """

    url: str = ""
    push: Callable[[], None] = _nothing
    fetch: Callable[[], None] = _nothing


HERE = States()


def is_state(name: str) -> bool:
    """Whether a file is part of a state, by its path in the training's folder."""
    return name.split("/")[0] in (CHECKPOINTS, BEST)
