"""Wrong settings are refused by name before any file changes."""

import pytest

from onesug_jax.errors import UserError
from onesug_jax.train.checks import check_fit

VALID = {"steps": 5, "batch_size": 16, "mesh": {"replica": 1, "data": 2, "fsdp": 2, "tensor": 2}}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"accumulation": 4},
        {"evaluate_every": 2, "best_metric": "mrr"},
        {"profile_steps": (5, 9)},
        {"profile_steps": [1, 1]},
    ],
)
def test_valid_settings_pass(changed):
    check_fit("toy", **{**VALID, **changed})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": 0}, "toy: steps=0: expected at least 1"),
        ({"log_every": 0}, "log_every=0"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
        ({"keep": 0}, "keep=0"),
        ({"evaluate_every": -1}, "evaluate_every=-1: expected at least 0"),
        ({"accumulation": 0}, "accumulation=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 18}, "toy.batch_size: 18 .* data=2 x fsdp=2 = 4 .* of 4, such as 16 or 20"),
        ({"accumulation": 8}, "accumulation=8 microbatch.* multiple of 32, such as 32 or 64"),
        ({"best_metric": "mrr"}, "best_metric='mrr' needs evaluate_every"),
        *(
            ({"profile_steps": span}, r"profile_steps=.*expected \(first, last\).*at most 5")
            for span in [(0, 3), (4, 3), (6, 9), [3], 3]
        ),
    ],
)
def test_wrong_settings_are_named(changed, words):
    with pytest.raises(UserError, match=words):
        check_fit("toy", **{**VALID, **changed})


@pytest.mark.long
@pytest.mark.parametrize(
    "changed",
    [
        {"steps": 0},
        {"mesh": (1, 3, 1)},  # 16 examples over 3 parts
        {"mesh": (1, 1, 3)},  # parameters over 3 parts
        {"accumulation": 3},
        {"profile_steps": (90, 95)},
        {"batch_size": 17, "mesh": (2, 1, 1)},
        {"best_metric": "mrr"},
        {"identity": {"model": "other"}},
    ],
)
def test_a_refused_run_does_not_change_the_folder(train, toy, tmp_path, changed, capsys):
    folder = tmp_path / "stage"
    with pytest.raises(UserError):
        train(folder, **{"params_from": {"too": "small"}} | changed)
    assert not folder.exists()
    train(folder, steps=4)
    before = toy.contents(folder)
    with pytest.raises(UserError):
        train(folder, **{"steps": 8} | changed)
    assert toy.contents(folder) == before
