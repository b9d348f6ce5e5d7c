"""The trained model of one folder as one object: parameters, settings, vocabulary, encoder, ids,
index and counts.

A command that uses a model opens it once, `TrainedModel(context)`, and passes it on; no other code
reads parts from the folder. The folder is a bundle (`pipeline/bundle.py`) or a copy of one, or
WORK_DIR during its training.
"""

from __future__ import annotations

import dataclasses
import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

from onesug_jax.errors import UserError
from onesug_jax.pipeline.spec import Context
from onesug_jax.pipeline.workdir import Manifest
from onesug_jax.stages import trained
from onesug_jax.stages.parts import SPARE, Parts

if TYPE_CHECKING:
    from onesug_jax.decode.closed_set import Filter
    from onesug_jax.decode.item_suggester import ItemSuggester
    from onesug_jax.decode.suggester import Suggester
    from onesug_jax.logs.asof.config import AsOfConfig
    from onesug_jax.logs.asof.state import AsOf
    from onesug_jax.model.seq2seq import Seq2Seq
    from onesug_jax.retrieval.tables import QueryTables
    from onesug_jax.tasks.features import Featurizer

SNAPSHOT = "asof"  # subfolder of the examples: the counts at the end of the log


@dataclasses.dataclass(frozen=True)
class ListRules:
    """The model that writes lists, and the queries that are allowed in them; in gin: `suggester`.

    Attributes:
      model: "pretrain" (SFT), "rwr" (preference-aligned), or "auto": the aligned one if there is
        one.
      targets: the output of a text model: "query", "id" (semantic ids, mapped back to queries), or
        "auto": queries if it was trained on them.
      closed: a text model's lists contain only queries of the train split.
      must_start: they contain only queries that start with the prefix, if there are any.
      blocked: a file of terms; queries that contain one of them are never shown.
      least_count: queries with fewer searches are never shown.
    """

    model: str = "auto"
    targets: str = "auto"
    closed: bool = True
    must_start: bool = True
    blocked: str | None = None
    least_count: int = 0

    def __post_init__(self):
        for name, values in (
            ("model", ("auto", "pretrain", "rwr")),
            ("targets", ("auto", "query", "id")),
        ):
            if getattr(self, name) not in values:
                expected = ", ".join(map(repr, values[:-1]))
                raise UserError(
                    f"suggester.{name} = {getattr(self, name)!r}: expected {expected} or "
                    f"{values[-1]!r}"
                )

    @property
    def shown(self) -> Filter:
        """The filter that `blocked` and `least_count` define."""
        from onesug_jax.decode.closed_set import Filter

        return Filter.read(self.blocked, self.least_count)


class TrainedModel(Parts):
    """A trained model.

    Args:
      context: of the command that uses it; `context.work` is the folder.
      stage: "pretrain" or "rwr"; None: `ListRules.model`.

    Attributes:
      stored: its description (`trained.description`).
      spec: its input features (`FeatureSpec`).
      config: its sizes (`ModelConfig`).

    Raises:
      UserError: no such model, or it belongs to another vocabulary.
    """

    def __init__(self, context: Context, stage: str | None = None):
        from onesug_jax.model.config import ModelConfig
        from onesug_jax.tasks.features import FeatureSpec

        super().__init__(context.work)
        self.context, self.rules = context, context.configured("suggester")()
        stage = stage or self.rules.model
        self.stage = trained.stage_in_use(self.work) if stage == "auto" else stage
        self.stored = trained.description(self, self.stage)
        self.spec = FeatureSpec(**self.stored["features"])
        self.config = ModelConfig(**self.stored["model"])
        self._ranker: ItemSuggester | None = None

    @cached_property
    def reference(self) -> TrainedModel | None:
        """The SFT model that it was aligned from; None if it is not aligned."""
        return TrainedModel(self.context, "pretrain") if self.stage == "rwr" else None

    @cached_property
    def network(self) -> Seq2Seq:
        """The encoder-decoder; its compiled programs are cached in WORK_DIR."""
        from onesug_jax.model.seq2seq import Seq2Seq
        from onesug_jax.train.compiler import cache_programs

        cache_programs(self.context.compiled)
        return Seq2Seq(dataclasses.replace(self.config, dropout=0.0))

    @cached_property
    def parameters(self) -> Any:
        """The parameters, the best ones if training stored any."""
        from onesug_jax.train.checkpoint import load_params

        return load_params(getattr(self.work, self.stage))

    @cached_property
    def featurizer(self) -> Featurizer:
        """Converts requests to model inputs."""
        from onesug_jax.tasks.features import Featurizer

        return Featurizer(self.vocabulary, self.spec)

    # ------------------------------------------------------------------ lists of text

    @property
    def targets(self) -> str:
        """The output of a text model: "query" or "id"."""
        if self.rules.targets != "auto":
            return self.rules.targets
        on_ids, on_queries = (
            any(task.endswith(kind) for task in self.stored["tasks"])
            for kind in ("request_to_id", "query")
        )
        return "id" if on_ids and not on_queries else "query"

    def text_suggester(self, params: Any = None) -> Suggester:
        """The suggester of a text model, with `params` or the stored parameters."""
        from onesug_jax.decode.suggester import Suggester

        index, rules = self.completions, self.rules
        counts = dict(zip(index.queries, index.counts.tolist(), strict=True))
        return Suggester(
            self.network,
            self.parameters if params is None else params,
            self.featurizer,
            self.context.configured("BeamConfig")(),
            queries=counts if rules.closed else None,
            must_start=rules.must_start,
            ids=self.ids if self.targets == "id" else None,
            shown=rules.shown,
        )

    # ------------------------------------------------------------------ lists of items

    def after_log(self) -> AsOf:
        """The as-of state at the end of the log that the model was trained on, with the settings of
        training except for the number of candidates.

        Raises:
          UserError: the model was trained before states were saved beside it.
        """
        from onesug_jax.logs.asof import snapshot

        folder = os.path.join(self.work.examples, SNAPSHOT)
        most = self.context.configured("AsOfConfig")().candidates  # training rows have fewer
        config = dataclasses.replace(snapshot.settings(folder), candidates=most)
        return snapshot.load(folder, config, spare=SPARE, nearby=self.index.nearby(config))

    def tables_of(self, state: AsOf) -> QueryTables:
        """Tables with a row for each query in a state, and spare rows."""
        later = range(state.first, len(state))
        table = self.tables(len(later) + SPARE)
        table.add(later, [state.text(number) for number in later], self.encode)
        return table

    def item_suggester(self, state: AsOf, table: QueryTables, **shapes: Any) -> ItemSuggester:
        """The suggester that ranks candidates among a state's queries, with their tables; `shapes`
        are arguments of `ItemSuggester`. Later calls return the same one with the new state, so
        that nothing is compiled again.
        """
        from onesug_jax.decode.item_suggester import ItemSuggester

        if self._ranker is not None:
            self._ranker.text_of = state.text
            self._ranker.refresh(vars(table), 1, len(table.vectors))
            return self._ranker
        self._ranker = ItemSuggester(
            self.network,
            self.parameters,
            self.featurizer,
            vars(table),
            state.text,
            lambda prefix: self.index.prefix_number(prefix) + 1,
            writing=self.context.configured("WritingConfig")(),
            **shapes,
        )
        shown = self.rules.shown
        if shown.blocked:
            self._ranker.passes = lambda text: not shown.blocks(text)
        return self._ranker


def before_log(context: Context, parts: Parts, **changes) -> AsOf:
    """The as-of state of a shop before its first search; `changes` replace fields of `AsOfConfig`.

    The limits on visitors (`min_users`) and repeats (`max_repeats`) are at least as strict as those
    of the mine stage.
    """
    from onesug_jax.logs.asof.state import AsOf

    config: AsOfConfig = context.configured("AsOfConfig")()
    mined = Manifest.read(context.home.mined)
    if mined is not None:
        least = max(config.min_users, mined.settings.get("mine.min_users", 1))
        most = min(config.max_repeats, mined.settings.get("mine.max_repeats", config.max_repeats))
        config = dataclasses.replace(config, min_users=least, max_repeats=most)
    config = dataclasses.replace(config, **changes)
    queries, nearby = parts.completions.queries, parts.index.nearby(config)
    return AsOf(queries, config, spare=SPARE, nearby=nearby)
