"""The bench of forged feedback: its reach with and without defences."""

import importlib

import pytest


@pytest.fixture(scope="module")
def bench(project_root):
    """The script `launch/bench_poison.py`, and a small shop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(project_root / "launch"))
        module = importlib.import_module("bench_poison")
    return module, module.Shop.simulated(12_000)


def cell(bench, place, defended, volume):
    module, shop = bench
    return module.attacked(shop, 5, defended, module._KINDS[place], volume)


@pytest.mark.long
@pytest.mark.parametrize("place", range(3))
def test_anonymous_or_unserved_feedback_reaches_no_list(bench, place):
    assert cell(bench, place, False, 1.0) == "100% (1)", "without defences, in all of them"
    assert cell(bench, place, True, 1.0) == "0 %"


@pytest.mark.long
@pytest.mark.parametrize("place", [3, 4])
def test_one_address_reaches_no_list(bench, place):
    assert [cell(bench, place, True, volume) for volume in (0.2, 1.0)] == ["0 %", "0 %"]


@pytest.mark.long
def test_many_addresses_need_a_twentieth_of_the_prefixs_visitors(bench):
    assert cell(bench, 5, False, 0.049) != "0 %"
    assert cell(bench, 5, True, 0.049) == "0 %"
    assert cell(bench, 5, True, 1.0) == "100% (1)"
