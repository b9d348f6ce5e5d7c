"""Training the cascade's ranker: LambdaMART on the newest of the model's training rows.

Counts are as of each row's own moment, so no count includes its own row. The label of the searched
query is its level: CLICK 1, ITEM_CLICK 2, ORDER 3. A list has one relevant query, so its label has
no effect on the ranking; `CascadeConfig.orders` weighs orders against clicks.
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
_FEWEST = 20  # minimum number of training lists


def lightgbm():
    """Imports the library; UserError with the command that installs it."""
    try:
        import lightgbm as library
    except (ImportError, OSError) as error:
        raise UserError(
            f"the cascade needs LightGBM, which cannot be imported ({error}); install it with "
            "`pip install 'lightgbm>=4.6,<5'`, and its run-time library libgomp1 with the "
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
    """Trains the ranker on the newest rows of the train split; writes it into `out`.

    Args:
      examples: of train, in time order. tables: of all queries and prefixes.
      as_of: names the columns of the counts.

    Returns:
      a report: rows, rows whose query is still there after recall and pre-rank, trees, parameters
      (splits and leaves of the trees), importance of the features.

    Raises:
      UserError: too few rows, counts of other half-lives, or LightGBM cannot be imported.
    """
    library = lightgbm()
    width = examples.shapes["candidate_counts"][1]
    if width != as_of.width or config.half_life >= len(as_of.half_lives_days):
        raise UserError(
            f"{examples.folder}: expected counts in the {as_of.width} columns of AsOfConfig, with "
            f"half-life {config.half_life} (CascadeConfig.half_life) among them; found {width}. "
            "Use the settings of the examples."
        )
    first = max(len(examples) - config.rows, 0)
    lists, labels, weights = _lists(examples, tables, config, first)
    if len(lists) < _FEWEST:
        raise UserError(
            f"the cascade has too few training rows: {len(lists)} of the newest "
            f"{len(examples) - first:,} rows have their query among two or more candidates; "
            f"{_FEWEST} are needed"
        )
    held_out = max(len(lists) // 10, 1)
    groups = [len(table) for table in lists]
    table, label = np.concatenate(lists), np.concatenate(labels)
    weight, end = np.repeat(weights, groups), sum(groups[:-held_out])
    feature_names = list(names(as_of))
    training = library.Dataset(
        table[:end],
        label[:end],
        group=groups[:-held_out],
        weight=weight[:end],
        feature_name=feature_names,
    )
    validation = training.create_valid(
        table[end:], label[end:], group=groups[-held_out:], weight=weight[end:]
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
        training,
        num_boost_round=config.trees,
        valid_sets=[validation],
        callbacks=[library.early_stopping(50, verbose=False)],
    )
    with atomic_path(os.path.join(out, MODEL_FILE)) as path:
        ranker.save_model(path)
    gains = ranker.feature_importance("gain")
    shares = zip(feature_names, (gains / max(gains.sum(), 1e-9)).tolist(), strict=True)
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
    """Features `[n, F]`, labels `[n]` and weight of each row from `first` on whose query is among
    two or more candidates after the pre-rank.
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
        retained = pre_rank(items, config)
        is_target = retained == target
        if is_target.any() and len(retained) > 1:
            level = Level(int(row["level"]))
            table = features(items, int(row["typed"]), int(row["prefix_row"]), tables)
            lists.append(table[retained])
            labels.append(np.where(is_target, LABELS[level], 0))
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
