"""Training the cascade's ranker: LambdaMART on the newest rows that the model learns from.

Their counts are as of each row's own moment, so no count includes its own row. Labels are the
levels of what was searched: CLICK 1, ITEM_CLICK 2, ORDER 3. With one relevant query in a list the
label alone changes nothing; `CascadeConfig.orders` is the weight of orders against clicks.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from onesug_jax.errors import UserError
from onesug_jax.evaluate.cascade import CascadeConfig, cascade, features, names, pre_rank
from onesug_jax.files import atomic_path, require_files, write_json
from onesug_jax.logs.asof.config import AsOfConfig
from onesug_jax.logs.asof.items import Items
from onesug_jax.logs.schema import Level
from onesug_jax.progress import Progress
from onesug_jax.retrieval.tables import QueryTables
from onesug_jax.tasks.item_examples import ItemExamples

LABELS = {Level.CLICK: 1, Level.ITEM_CLICK: 2, Level.ORDER: 3}
MODEL_FILE = "ranker.txt"
REPORT = "report.json"
_ITEMS = ("candidates", "candidate_counts", "history", "history_minutes", "clock")
_FEWEST = 20  # lists to learn from


def lightgbm():
    """The library; UserError with the command that installs it."""
    try:
        import lightgbm as library
    except (ImportError, OSError) as error:
        raise UserError(
            f"the cascade ranks with LightGBM, which cannot be loaded ({error}); install it with "
            "`pip install 'lightgbm>=4.6,<5'`, and its run-time library libgomp1 by the "
            "system's package manager"
        ) from None
    return library


def train(
    examples: ItemExamples,
    tables: QueryTables,
    config: CascadeConfig,
    as_of: AsOfConfig,
    out: str,
    seed: int,
) -> dict:
    """Train the ranker on the newest rows of the train split into `out`.

    Args:
      examples: of train, in the order of time. tables: of all queries and prefixes.
      as_of: names the columns of the counts.

    Returns:
      a report: rows, how many of them recall and pre-rank retained, trees, parameters (splits and
      leaves of the trees), importance of the features.

    Raises:
      UserError: too few rows, counts of other half-lives, or LightGBM is not there.
    """
    library = lightgbm()
    width = examples.shapes["candidate_counts"][1]
    if width != as_of.width or config.half_life >= len(as_of.half_lives_days):
        raise UserError(
            f"{examples.folder}: expected counts in the {as_of.width} columns of AsOfConfig, with "
            f"half-life {config.half_life} (CascadeConfig.half_life) among them; found {width}. "
            "Give the settings that the examples were made with."
        )
    first = max(len(examples) - config.rows, 0)
    lists, labels, weights = _lists(examples, tables, config, first)
    if len(lists) < _FEWEST:
        raise UserError(
            f"the cascade has too little to learn from: of the {len(examples) - first:,} newest "
            f"rows {len(lists)} hold their query among two or more candidates; {_FEWEST} are needed"
        )
    held = max(len(lists) // 10, 1)
    groups = [len(one) for one in lists]
    table, label = np.concatenate(lists), np.concatenate(labels)
    weight, inside = np.repeat(weights, groups), sum(groups[:-held])
    features_of = list(names(as_of))
    fit = library.Dataset(
        table[:inside],
        label[:inside],
        group=groups[:-held],
        weight=weight[:inside],
        feature_name=features_of,
    )
    judge = fit.create_valid(
        table[inside:], label[inside:], group=groups[-held:], weight=weight[inside:]
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
    shares = zip(features_of, (gains / max(gains.sum(), 1e-9)).tolist(), strict=True)
    trees = ranker.dump_model(num_iteration=ranker.best_iteration)["tree_info"]
    report = {
        "rows": len(examples) - first,
        "recalled": len(lists),
        "trees": ranker.best_iteration,
        "parameters": sum(2 * tree["num_leaves"] - 1 for tree in trees),
        "importance": dict(sorted(shares, key=lambda pair: -pair[1])),
    }
    write_json(os.path.join(out, REPORT), report)
    return report


def _lists(
    examples: ItemExamples, tables: QueryTables, config: CascadeConfig, first: int
) -> tuple[list[np.ndarray], list[np.ndarray], list[float]]:
    """Of the rows from `first` on whose query is left by the pre-rank among others: features
    `[n, F]`, labels `[n]`, weight.
    """
    lists, labels, weights = [], [], []
    names = (*_ITEMS, "target_candidate", "level", "typed", "prefix_row")
    blocks = examples.blocks(first, names=names)
    rows = (
        dict(zip(names, row, strict=True))
        for block in blocks
        for row in zip(*(block[name] for name in names), strict=True)
    )
    for row in Progress("cascade", len(examples) - first).over(rows):
        target = int(row["target_candidate"]) - 1
        if target < 0:
            continue
        items = Items(*(row[name] for name in _ITEMS))
        places = pre_rank(items, config)
        hit = places == target
        if hit.any() and len(places) > 1:
            level = Level(int(row["level"]))
            found = features(items, int(row["typed"]), int(row["prefix_row"]), tables)
            lists.append(found[places])
            labels.append(np.where(hit, LABELS[level], 0))
            weights.append(config.orders if level == Level.ORDER else 1.0)
    return lists, labels, weights


def load(
    folder: str,
    config: CascadeConfig,
    tables: QueryTables,
    text_of: Callable[[int], str],
    prefix_row: Callable[[str], int],
) -> Callable[..., list[list[str]]]:
    """The trained cascade, see `cascade`."""
    path = os.path.join(folder, MODEL_FILE)
    require_files([path], "a trained ranker", "run the cascade stage first.")
    ranker = lightgbm().Booster(model_file=path)
    return cascade(ranker, config, tables, text_of, prefix_row)
