"""Training the cascade's ranker: LambdaMART on the newest rows of the train split.

Features come from `cascade.Cascade` over the statistics of the rows before those, so that no count
knows its own row. Labels are the levels of what was searched: CLICK 1, ITEM_CLICK 2, ORDER 3. With
one relevant query a list the label alone changes nothing; what orders weigh against clicks is
`CascadeConfig.orders`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.evaluate.cascade import (
    FEATURES,
    Cascade,
    CascadeConfig,
    Known,
    Row,
    Statistics,
)
from onesug_jax.files import atomic_path, require_files, write_json
from onesug_jax.logs.schema import Level, request_level
from onesug_jax.progress import Progress
from onesug_jax.tasks.features import Request

GRADE = {Level.CLICK: 1, Level.ITEM_CLICK: 2, Level.ORDER: 3}
MODEL_FILE = "ranker.txt"
REPORT = "report.json"


def lightgbm():
    """The library, or a word on how to get it."""
    try:
        import lightgbm as library
    except (ImportError, OSError) as error:
        raise UserError(
            f"the cascade ranks with LightGBM, which cannot be loaded ({error}); install it with "
            "`pip install 'lightgbm>=4.6,<5'`, and its run-time library libgomp1 by the "
            "system's package manager"
        ) from None
    return library


def train(rows: Sequence[Row], known: Known, config: CascadeConfig, out: str, seed: int) -> dict:
    """Train the ranker on rows of the train split, in the order of time, into `out`.

    Returns:
      a report: rows, how many of them recall and pre-rank kept, trees, parameters (splits and
      leaves of the trees), importance of the features.

    Raises:
      UserError: too few rows, or LightGBM is not there.
    """
    library = lightgbm()
    rows = sorted(rows, key=lambda row: row.time_ms)
    cut = int(len(rows) * (1 - config.newest))
    if cut < 1 or len(rows) - cut < 20:
        raise UserError(
            f"the cascade needs more than {len(rows)} rows: 20 newest ones to learn from, and some "
            "before them to count."
        )
    before = Cascade(
        known, Statistics(rows[:cut], known.completions, config.half_life_days), config
    )
    tables, grades, groups, weights = [], [], [], []
    for row in Progress("cascade", len(rows) - cut).over(rows[cut:]):
        alone = known.alone([row.prefix], [row.query])[0]
        vector = known.vectors([row.prefix], [row.query if alone else None])
        request = Request(
            row.prefix,
            row.history,
            profile=row.profile,
            vector=None if vector is None else vector[0],
            minutes=row.minutes,
        )
        numbers, features = before.candidates(request)
        hit = numbers == known.completions.find(row.query)
        if hit.any() and len(numbers) > 1:
            tables.append(features)
            grades.append(np.where(hit, GRADE[row.level], 0))
            groups.append(len(numbers))
            weights.append(config.orders if row.level == Level.ORDER else 1.0)
    if len(groups) < 10:
        raise UserError(
            f"recall finds the query of only {len(groups)} of the {len(rows) - cut:,} newest rows; "
            "the cascade has too little to learn from."
        )
    held = max(len(groups) // 10, 1)
    inside = sum(groups[:-held])
    table, grade = np.concatenate(tables), np.concatenate(grades)
    weight = np.repeat(weights, groups)
    fit = library.Dataset(
        table[:inside],
        grade[:inside],
        group=groups[:-held],
        weight=weight[:inside],
        feature_name=list(FEATURES),
    )
    judge = fit.create_valid(
        table[inside:], grade[inside:], group=groups[-held:], weight=weight[inside:]
    )
    ranker = library.train(
        {
            "objective": "lambdarank",
            "metric": "ndcg",
            "eval_at": [16],
            "num_leaves": config.leaves,
            "learning_rate": config.learning_rate,
            "min_data_in_leaf": config.least,
            "lambdarank_truncation_level": 20,
            "seed": seed,
            "deterministic": True,
            "verbose": -1,
        },
        fit,
        num_boost_round=config.trees,
        valid_sets=[judge],
        callbacks=[library.early_stopping(50, verbose=False)],
    )
    with atomic_path(os.path.join(out, MODEL_FILE)) as path:
        ranker.save_model(path)
    gains = ranker.feature_importance("gain")
    trees = ranker.dump_model(num_iteration=ranker.best_iteration)["tree_info"]
    report = {
        "rows": len(rows) - cut,
        "recalled": len(groups),
        "trees": ranker.best_iteration,
        "parameters": sum(2 * tree["num_leaves"] - 1 for tree in trees),
        "importance": dict(
            sorted(
                zip(FEATURES, (gains / max(gains.sum(), 1e-9)).tolist(), strict=True),
                key=lambda pair: -pair[1],
            )
        ),
    }
    write_json(os.path.join(out, REPORT), report)
    return report


def load(folder: str, rows: Iterable[Row], known: Known, config: CascadeConfig) -> Cascade:
    """The trained cascade with the statistics of `rows`, all of the train split."""
    path = os.path.join(folder, MODEL_FILE)
    require_files([path], "a trained ranker", "run the cascade stage first.")
    statistics = Statistics(rows, known.completions, config.half_life_days)
    return Cascade(known, statistics, config, lightgbm().Booster(model_file=path))


def read_rows(log_files: Sequence[str], train: str, history: int) -> list[Row]:
    """The rows of the train split, with histories of at most `history` queries out of
    `log_files`.
    """
    from onesug_jax.logs.history import with_history
    from onesug_jax.logs.schema import RECENT, RECENT_MINUTES, profile_columns

    rows: list[Row] = []
    for batch in with_history(log_files, keep=train, history=history):
        profiles = [batch[name].to_pylist() for name in profile_columns(batch.schema)]
        profiles = list(zip(*profiles, strict=True)) if profiles else [()] * batch.num_rows
        columns: Mapping[str, list] = {
            name: batch[name].to_pylist()
            for name in (
                "prefix",
                "query",
                "clicked_items",
                "ordered_items",
                "timestamp_ms",
                RECENT,
                RECENT_MINUTES,
            )
        }
        for prefix, query, clicked, ordered, at, recent, minutes, profile in zip(
            *columns.values(), profiles, strict=True
        ):
            level = request_level(clicked or (), ordered or ())
            rows.append(Row(prefix, query, level, at, recent, profile, minutes))
    return rows
