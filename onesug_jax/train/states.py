"""Where the states of a training lie: in its folder, or in a bucket."""

from collections.abc import Callable
from dataclasses import dataclass

CHECKPOINTS, BEST = "checkpoints", "best"


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class States:
    """A folder in which orbax writes `checkpoints/` and `best/`.

    Attributes:
      url: of a bucket's folder; "": the training's own folder.
      push: sends the reports in the training's folder; the primary calls it before a checkpoint.
      fetch: brings `best/`, or `checkpoints/` where there is none, into the training's folder.
    """

    url: str = ""
    push: Callable[[], None] = _nothing
    fetch: Callable[[], None] = _nothing


HERE = States()


def is_state(name: str) -> bool:
    """Whether a file of a training's folder, by its name there, is part of a state."""
    return name.split("/")[0] in (CHECKPOINTS, BEST)
