"""A saved as-of state continues as if it had not been saved."""

import dataclasses
import json

import numpy as np
import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.asof.config import DAY_MS, AsOfConfig
from onesug_jax.logs.asof.snapshot import load, save
from onesug_jax.logs.asof.state import AsOf
from tests.logs.asof.searches import START, WORDS, random_log


def test_a_state_is_saved_without_rare_texts(tmp_path):
    state = AsOf(["lamp", "lace", "rare one"], AsOfConfig(min_users=2))
    for user in ("u", "v"):
        for prefix, query in (("la", "lamp"), ("", "lace"), ("a secret", "lamp")):
            state.observe(START, user, prefix, query)
    state.observe(START, "u", "never", "never converted")
    state.observe(START, "u", "rar", "rare one")
    save(state, tmp_path, rare=False)
    written = (tmp_path / "asof_settings.json").read_text()
    assert "secret" not in written and "never" not in written and '"rar"' not in written
    again = load(tmp_path)
    for prefix in ("la", ""):
        one, other = (s.request(prefix, "", START + DAY_MS) for s in (state, again))
        np.testing.assert_array_equal(one.candidate_counts, other.candidate_counts)


def test_a_saved_state_continues_as_one_that_was_not_saved(tmp_path):
    log = random_log(7, rows=200)
    config = AsOfConfig(min_users=2, few=0, history=0)
    straight, before = AsOf(WORDS[::2], config), AsOf(WORDS[::2], config)
    for time, user, prefix, query, level, shown in log[:120]:
        straight.observe(time, user, prefix, query, level, shown=shown)
        before.observe(time, user, prefix, query, level, shown=shown)
    save(before, tmp_path)
    again = load(tmp_path, config)
    straight.settle()
    for time, user, prefix, query, level, shown in log[120:]:
        for state in (straight, again):
            state.observe(time, user, prefix, query, level, shown=shown)
    for prefix in ("", "a", "ab", "c"):
        a, b = (s.request(prefix, "", log[-1][0] + DAY_MS) for s in (straight, again))
        for field in dataclasses.fields(a):
            np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))
    with pytest.raises(UserError, match="half_lives_days"):
        load(tmp_path, AsOfConfig(half_lives_days=(None, 7.0), weights=(1.0, 1.0)))
    (tmp_path / "asof.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path, config)
    about = json.loads((tmp_path / "asof_settings.json").read_text())
    (tmp_path / "asof_settings.json").write_text(json.dumps(about | {"format": 2}))
    with pytest.raises(UserError, match="another release .*format 2, .* run the examples stage"):
        load(tmp_path, config)
