"""The model card contains the stages' facts, the metrics, and warnings."""

import pyarrow as pa
import pytest

from onesug_jax.evaluate import card
from onesug_jax.evaluate.evaluator import Evaluation

FACTS = {
    "stage": "rwr",
    "model": {"d_model": 128, "encoder_layers": 2, "decoder_layers": 1, "dtype": "float32"},
    "parameters": 1_600_000,
    "features": {"history": 10, "related": 16, "soft": False, "profile": True, "input_length": 96},
    "log": {"splits": {"train": 9000}, "set_aside": 3, "profile": ["age"]},
    "mined": {"visitors": 700, "queries": 500, "queries_left_out": 41},
    "min_users": 5,
    "steps": {"pretrain": 400, "rwr": 100},
    "seed": 7,
    "simulated": False,
}


@pytest.fixture
def evaluation():
    columns = {"level": ["order", "click", "click", "click"]}
    columns |= {"rank_model": [1, 2, 0, 1], "rank_most_popular": [2, 0, 0, 1]}
    columns["scores_model"] = [[-0.1], [-1.0, -2.0], [-3.0], [-0.2]]
    return Evaluation({"model": {}, "most_popular": {}}, pa.table(columns))


def test_a_card_has_the_facts_and_the_metrics(evaluation, tmp_path):
    text = open(card.write_card(evaluation, str(tmp_path), FACTS), encoding="utf-8").read()
    for expected in (
        "1,600,000 parameters, d_model 128, 2 + 1 layers",
        "400 updates of `pretrain`, 100 updates of `rwr`; seed 7",
        "the newest 10 searches of the visitor, 16 related queries, profile (age)",
        "9,000 searches of 700 visitors, 500 queries; 3 rows set aside",
        "| model | 75.00 (",
        "| most popular | 50.00 (",
        "searched by 5 or more visitors; 41 queries of fewer visitors were excluded.\n",
        "expected calibration error",
    ):
        assert expected in text, expected
    assert "enhanced-prefix" not in text and "simulated" not in text


def test_a_card_warns_of_single_visitors_and_simulated_logs(evaluation, tmp_path):
    facts = {**FACTS, "min_users": 1, "simulated": True}
    bare = Evaluation(evaluation.metrics, evaluation.rows.drop_columns(["scores_model"]))
    text = open(card.write_card(bare, str(tmp_path), facts), encoding="utf-8").read()
    assert "one person's query can be shown to another" in text
    assert "**Its log is simulated**" in text and "calibration" not in text
