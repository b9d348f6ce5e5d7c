"""Groups of collectives in XLA's text, and bytes sent by a chip against simulated rings."""

import pytest

from onesug_jax.train.collectives import Collective, parse_groups


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, to_apply=%add", ((0, 1), (2, 3))),
        ("channel_id=1, replica_groups=[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x={1}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("replica_groups=mesh['a'=2,'b'=3] {'b'}, dimensions={0}", ((0, 1, 2), (3, 4, 5))),
        ("replica_groups=mesh['a'=2,'b'=3] {'a'}", ((0, 3), (1, 4), (2, 5))),
        (
            "replica_groups=mesh['a'=2,'b'=3], device_ids=([3,2]T(1,0)) {'a'}",
            ((0, 1), (2, 3), (4, 5)),
        ),
        ("source_target_pairs={{0,1},{1,2}}", ((0, 1), (1, 2))),
        ("dimensions={0}", ()),
    ],
)
def test_groups_of_each_notation(text, groups):
    assert parse_groups(text) == groups


def test_axes_of_the_mesh():
    mesh = {"replica": 2, "data": 2, "fsdp": 1, "tensor": 2}

    def axes(*group):
        return Collective("all-reduce", 1.0, (group,), 1).axes(mesh)

    assert axes(0, 1) == ("tensor",)
    assert axes(0, 2) == ("data",)
    assert axes(1, 3, 5, 7) == ("replica", "data")
    assert axes(*range(8)) == ("replica", "data", "tensor")
    assert Collective("all-reduce", 1.0, (), 1).axes(mesh) == ()


def ring(chips, size):
    """Bytes that a chip sends while the shards of an array go around a ring."""
    return sum(size / chips for _ in range(chips - 1))


@pytest.mark.parametrize(("slices", "chips"), [(1, 4), (2, 4), (4, 1), (3, 2)])
def test_bytes_sent_by_rings_in_slices_and_between_them(slices, chips):
    size, group = 960.0, tuple(range(slices * chips))
    inside, between = ring(chips, size), ring(slices, size / chips)

    def sent(kind, result):
        return Collective(kind, result, (group,), 5).sent(chips)

    assert sent("all-gather", size) == pytest.approx((5 * inside, 5 * between))
    part = size / len(group)
    assert sent("reduce-scatter", part) == pytest.approx((5 * inside, 5 * between))
    assert sent("all-reduce", size) == pytest.approx((10 * inside, 10 * between))
    # Each chip sends a part of its array to every other chip.
    expected = (5 * part * (chips - 1), 5 * part * chips * (slices - 1))
    assert sent("all-to-all", size) == pytest.approx(expected)


def test_bytes_sent_between_slices_by_their_hosts():
    reduce = Collective("all-reduce", 960.0, (), 5, between=True)
    assert reduce.sent(4, slices=3) == pytest.approx((0, 2 * 5 * ring(3, 960.0)))
    assert reduce.axes({"replica": 3, "data": 4}) == ("replica",)


def test_a_permute_uses_links_or_the_network():
    inside = Collective("collective-permute", 8.0, ((0, 1), (4, 5)), 2)
    between = Collective("collective-permute", 8.0, ((0, 1), (1, 4)), 2)
    assert inside.sent(4) == (16, 0) and between.sent(4) == (0, 16)
    assert between.sent() == (16, 0)
