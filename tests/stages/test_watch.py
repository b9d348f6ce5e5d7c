"""The metrics of rows during training, and the standard error of a difference."""

import numpy as np
import pytest

from onesug_jax.stages import watch


def test_the_value_is_the_mean_of_both_means():
    gains, orders = np.array([100.0, 0.0, 50.0, 25.0]), np.array([True, False, False, True])
    found = {name: own @ gains for name, own in watch._weights(orders).items()}
    assert found == {"mrr@16": 43.75, "order_mrr@16": 62.5, "value": 53.125}
    none = watch._weights(np.zeros(4, bool))
    assert all(own @ gains == 43.75 for own in none.values())


@pytest.mark.parametrize("metric", ["mrr@16", "order_mrr@16", "value"])
def test_the_error_is_that_of_resampled_rows(metric):
    rng = np.random.default_rng(0)
    orders = rng.random(600) < 0.2
    differences = rng.normal(0.3, 20, 600) * (rng.random(600) < 0.3)
    means = []
    for _ in range(2000):
        drawn = rng.integers(0, 600, 600)
        means.append(watch._weights(orders[drawn])[metric] @ differences[drawn])
    found = watch._error(differences, watch._weights(orders)[metric])
    assert found == pytest.approx(np.std(means), rel=0.08)


def test_an_equal_or_missing_evaluation_is_no_improvement(capsys):
    assert watch.improves(70.2, 70.0, "value", 0.1)
    assert not watch.improves(70.0, 70.0, "value", 0.0)
    assert not watch.improves(70.05, 70.0, "value", 0.1)
    assert not watch.improves(None, 70.0, "value", 0.1)
    assert "no evaluation beat the value of 70.00" in capsys.readouterr().out
