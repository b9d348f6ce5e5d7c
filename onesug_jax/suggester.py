"""A trained model as one object: `Suggester.load(path)`, then `suggest`.

Part of the public interface (`onesug_jax/__init__.py`). The object answers like the stage `suggest`
(`stages/suggesting.py`), with a model that `stages/trained_model.py` opens from a bundle
(`pipeline/bundle.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onesug_jax.decode.suggester import Suggestion
    from onesug_jax.stages.trained_model import TrainedModel


class Suggester:
    """A trained model that answers requests, loaded from one folder.

    Attributes:
      model: the parts of the model, each read on first use: `parameters`, `config`, `vocabulary`,
        `encoder`, `ids`, `index`, `completions` (the indexed queries).

    `work` below is the WORK_DIR of a finished run.

    Examples:
      >>> from onesug_jax import Suggester
      >>> shop = Suggester.load(work)
      >>> scores = [suggestion.score for suggestion in shop.suggest("", history=["lamp"], k=3)]
      >>> scores == sorted(scores, reverse=True)
      True
      >>> sorted(shop.answer("l", k=2))[:3]
      ['candidates', 'history', 'milliseconds']
      >>> shop.model.encode(["lamp"]).shape == (1, shop.model.encoder.dimension)
      True
    """

    def __init__(self, model: TrainedModel):
        from onesug_jax.stages.suggesting import answering

        self.model = model
        self._answer = answering(model)

    @classmethod
    def load(cls, path: str, *flags: str) -> Suggester:
        """The model in a folder, opened once.

        Args:
          path: a WORK_DIR (its model in use), one of its versions (`versions/0003`), a trained
            stage's folder (`rwr`, `pretrain`), or a bundle (`rwr/bundle`), which may be a copy in
            another place: it contains all files of a model and the settings of its lists. Each may
            be in a bucket (`gs://BUCKET/PATH`).
          flags: as on the command line: "--gin.WritingConfig.beams=4".

        Raises:
          UserError: a wrong flag, or no trained model in this folder.
        """
        from onesug_jax.main import context_of
        from onesug_jax.stages.trained_model import TrainedModel

        return cls(TrainedModel(context_of("suggest", f"--gin.WORK_DIR={path}", *flags)))

    def suggest(
        self,
        prefix: str,
        history: Sequence[str] = (),
        profile: Sequence[str] = (),
        k: int | None = None,
        minutes: Sequence[float] = (),
    ) -> list[Suggestion]:
        """At most k suggestions (None: 16), best first: text, log-probability, `written`.

        A model with items answers as of the end of the log that it was trained on.

        Args:
          prefix: what was typed.
          history: earlier queries of the user, oldest first.
          profile: values of the log's profile columns, in their order.
          minutes: how long ago each query of the history was searched; empty: just now.
        """
        from onesug_jax.decode.suggester import Suggestion

        suggestions = self._answer(prefix, history, profile, k, minutes)["suggestions"]
        return [Suggestion(**suggestion) for suggestion in suggestions]

    def answer(self, prefix: str, **request: Any) -> dict[str, Any]:
        """The object that `suggest --json` prints; arguments as `suggest` takes them."""
        return self._answer(prefix, **request)
