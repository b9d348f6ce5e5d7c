"""Durations of the as-of settings."""

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.asof.config import DAY_MS, duration_ms


@pytest.mark.parametrize(
    "text, expected", [("90s", 90_000), ("1m", 60_000), ("1d", DAY_MS), ("inf", np.inf), (250, 250)]
)
def test_durations_are_read(text, expected):
    assert duration_ms(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "-1m", "1y", "nan"])
def test_an_invalid_duration_is_an_error(text):
    with pytest.raises(UserError, match="freshness"):
        duration_ms(text)
