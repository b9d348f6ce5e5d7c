# ruff: noqa: E501, E731
"""Trip counts, traffic and collectives of programs written by hand and compiled by XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from onesug_jax.train.collectives import Collective
from onesug_jax.train.hlo import Program
from onesug_jax.train.mesh import make_mesh

WRITTEN = """
HloModule example

%sliced (p0: f32[6,8,16], p1: s32[]) -> f32[8,16] {
  %p0 = f32[6,8,16]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = f32[1,8,16]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,16}
  ROOT %flat = f32[8,16]{1,0} bitcast(%cut)
}

%written (q0: f32[6,8,16], q1: f32[1,8,16], q2: s32[]) -> f32[6,8,16] {
  %q0 = f32[6,8,16]{2,1,0} parameter(0)
  %q1 = f32[1,8,16]{2,1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %nil = s32[] constant(0)
  ROOT %put = f32[6,8,16]{2,1,0} dynamic-update-slice(%q0, %q1, %q2, %nil, %nil)
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (arg: (s32[], f32[6,8,16], /*index=2*/f32[6,8,16]{2,1,0:T(8,128)S(1)})) -> (s32[], f32[6,8,16]) {
  %arg = (s32[], f32[6,8,16]{2,1,0}, f32[6,8,16]{2,1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %stack = f32[6,8,16]{2,1,0} get-tuple-element(%arg), index=1
  %layer = f32[8,16]{1,0} fusion(%stack, %i), kind=kLoop, calls=%sliced
  %reduced = f32[8,16]{1,0} all-reduce(%layer), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %near = f32[8,16]{1,0:T(8,128)S(1)} copy(%reduced)
  %part = f32[1,8,16]{2,1,0} bitcast(%reduced)
  %new = f32[6,8,16]{2,1,0} fusion(%stack, %part, %i), kind=kLoop, calls=%written
  ROOT %out = (s32[], f32[6,8,16]{2,1,0}) tuple(%i, %new)
}

%condition (arg.1: (s32[], f32[6,8,16])) -> pred[] {
  %arg.1 = (s32[], f32[6,8,16]{2,1,0}) parameter(0)
  %counter = s32[] get-tuple-element(%arg.1), index=0
  %bound = s32[] constant(6)
  ROOT %less = pred[] compare(%counter, %bound), direction=LT
}

ENTRY %main (x: f32[6,8,16]) -> f32[48,16] {
  %x = f32[6,8,16]{2,1,0} parameter(0)
  %start = s32[] constant(0)
  %init = (s32[], f32[6,8,16]{2,1,0}) tuple(%start, %x)
  %loop = (s32[], f32[6,8,16]{2,1,0}) while(%init), condition=%condition, body=%body
  %done = f32[6,8,16]{2,1,0} get-tuple-element(%loop), index=1
  %wide = bf16[6,8,16]{2,1,0} convert(%done)
  %gathered = bf16[48,8,16]{2,1,0} all-gather(%wide), channel_id=2, replica_groups=mesh['a'=8,'b'=2] {'a'}, dimensions={0}
  ROOT %end = f32[48,16]{1,0} bitcast(%gathered)
}
"""


def test_a_program_written_by_hand():
    program = Program.parse(WRITTEN)
    assert program.times()["body"] == 6 and program.times()["sliced"] == 6
    layer = 8 * 16 * 4
    in_loop = layer + 4 + layer  # the slice and its index read, the slice written
    in_loop += 2 * layer  # all-reduce
    in_loop += layer  # the copy reads; its result is in another memory
    in_loop += layer + 4 + layer  # the update and its index read, the update written in place
    in_loop += 4 + 4 + 1  # the condition
    after = 6 * layer + 3 * layer  # convert reads float32, writes bfloat16
    after += 3 * layer + 8 * 3 * layer  # all-gather
    assert program.memory_bytes() == 6 * in_loop + after
    reduce, gather = program.collectives()
    assert reduce == Collective("all-reduce", layer, ((0, 1, 2, 3), (4, 5, 6, 7)), 6)
    evens, odds = tuple(range(0, 16, 2)), tuple(range(1, 16, 2))
    assert gather == Collective("all-gather", 8 * 3 * layer, (evens, odds), 1)


def test_all_reduces_between_slices_are_sends_of_the_hosts():
    sent = (
        "  %send.1 = (f32[48,16]{1,0}, u32[], token[]) send(%x, %token), channel_id=7, is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_reduce_operation="SUM",_xla_megascale_transfer_type="ALL_REDUCE"}\n'
    )
    program = Program.parse(WRITTEN.replace("  ROOT %end", sent + "  ROOT %end"))
    found = [one for one in program.collectives() if one.between]
    assert found == [Collective("all-reduce", 48 * 16 * 4, (), 1, between=True)]


def test_an_asynchronous_permute_sends_its_result():
    """TPUs sum gradients in a ring. The start has an operand, a result, and two contexts."""
    ring = (
        "  %ring = (bf16[48,16]{1,0:S(1)}, bf16[48,16]{1,0:S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) "
        "collective-permute-start(%x), channel_id=9, source_target_pairs={{0,1},{1,0}}\n"
    )
    program = Program.parse(WRITTEN.replace("  ROOT %end", ring + "  ROOT %end"))
    found = [one for one in program.collectives() if one.kind == "collective-permute"]
    assert found == [Collective("collective-permute", 48 * 16 * 2, ((0, 1), (1, 0)), 1)]


SPREAD = """
HloModule spread

%first (f0: bf16[8,16], f1: f32[4,4]) -> (f32[4,4], bf16[8,16], bf16[64,16]) {
  %f0 = bf16[8,16]{1,0} parameter(0)
  %f1 = f32[4,4]{1,0} parameter(1)
  %twice = f32[4,4]{1,0} add(%f1, %f1)
  %part = bf16[64,16]{1,0} all-gather(%f0), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %all = (f32[4,4]{1,0}, bf16[8,16]{1,0}, bf16[64,16]{1,0}) tuple(%twice, %f0, %part)
}

%second (g0: bf16[8,16], g1: bf16[64,16], g2: f32[4,4]) -> (f32[4,4], bf16[64,16], bf16[64,16]) {
  %g0 = bf16[8,16]{1,0} parameter(0)
  %g1 = bf16[64,16]{1,0} parameter(1)
  %g2 = f32[4,4]{1,0} parameter(2)
  %thrice = f32[4,4]{1,0} multiply(%g2, %g2)
  %rest = bf16[64,16]{1,0} all-gather(%g0), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %both = (f32[4,4]{1,0}, bf16[64,16]{1,0}, bf16[64,16]{1,0}) tuple(%thrice, %g1, %rest)
}

ENTRY %main (x: bf16[8,16], y: f32[4,4]) -> f32[4,4] {
  %x = bf16[8,16]{1,0} parameter(0)
  %y = f32[4,4]{1,0} parameter(1)
  %one = (f32[4,4]{1,0}, bf16[8,16]{1,0}, bf16[64,16]{1,0}) fusion(%x, %y), kind=kOutput, calls=%first
  %sum = f32[4,4]{1,0} get-tuple-element(%one), index=0
  %own = bf16[8,16]{1,0} get-tuple-element(%one), index=1
  %begun = bf16[64,16]{1,0} get-tuple-element(%one), index=2
  %two = (f32[4,4]{1,0}, bf16[64,16]{1,0}, bf16[64,16]{1,0}) fusion(%own, %begun, %sum), kind=kOutput, calls=%second
  ROOT %end = f32[4,4]{1,0} get-tuple-element(%two), index=0
}
"""


def test_a_collective_split_over_fusions_counts_once():
    """TPUs gather during matrix products: each fusion passes on the partial result."""
    program = Program.parse(SPREAD)
    products = 2 * 2 * 4 * 4 * 4  # both fusions read and write 4 x 4
    assert program.memory_bytes() == products + 2 * (8 * 16 + 64 * 16)
    (gather,) = program.collectives()
    assert gather == Collective("all-gather", 64 * 16 * 2, (tuple(range(8)),), 1)


@pytest.mark.long
@pytest.mark.parametrize("remat", [False, True])
def test_traffic_of_layers_in_a_loop_is_linear_in_their_number(remat):
    """Weights, gradients and activations are stacked; an iteration uses only its own slices."""

    def layer(x, w):
        y = jax.nn.softmax(x @ w[0], -1) * jax.nn.gelu(x @ w[1])
        return x + jnp.tanh(y @ w[2]), None

    def loss(stack, x):
        return (jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, stack)[0] ** 2).sum()

    def traffic(layers):
        stack, x = jnp.ones((layers, 3, 64, 64)), jnp.ones((128, 64))
        compiled = jax.jit(jax.grad(loss)).lower(stack, x).compile()
        return Program.parse(compiled.as_text()).memory_bytes()

    one = (traffic(8) - traffic(4)) / 4
    assert traffic(32) - traffic(8) == pytest.approx(24 * one, rel=0.01)
    weights = 3 * 64 * 64 * 4  # read by both passes, their gradients written
    assert 3 * weights < one < 150 * 128 * 64 * 4  # and 128 rows for each of some 50 operations


def test_an_all_reduce_that_is_sliced_in_the_same_fusion_is_a_reduce_scatter():
    program = Program.parse(WRITTEN.replace("%body", "%all-reduce-scatter.1"))
    scattered, _ = program.collectives()
    groups = ((0, 1, 2, 3), (4, 5, 6, 7))
    assert scattered == Collective("reduce-scatter", 8 * 16 * 4 / 4, groups, 6)


def test_a_loop_with_an_unknown_end_has_the_given_trip_count():
    text = WRITTEN.replace("%bound = s32[] constant(6)", "%bound = s32[] add(%counter, %counter)")
    assert Program.parse(text).times(unknown_trips=11)["body"] == 11


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        Program.parse("module @jit_f { }")


@pytest.mark.parametrize("length", [3, 12])
def test_trips_and_traffic_of_a_compiled_scan(length):
    """A scan has the traffic of the unrolled steps, for any length."""
    stack, x = jnp.ones((length, 64, 64)), jnp.ones((32, 64))

    def run(unroll):
        scan = lambda s, x: jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, s, unroll=unroll)[
            0
        ]
        return Program.parse(jax.jit(scan).lower(stack, x).compile().as_text())

    scanned, unrolled = run(1), run(length)
    assert length in scanned.times().values()
    assert scanned.memory_bytes() == pytest.approx(unrolled.memory_bytes(), rel=0.35)


def test_collectives_of_a_sharded_scan():
    """A product over a sharded dimension is one all-reduce over four devices per layer."""
    mesh = make_mesh(1, 1, 4, devices=jax.devices()[:4])
    stack = jax.device_put(np.ones((5, 64, 64), np.float32), NamedSharding(mesh, P(None, "tensor")))
    x = jax.device_put(np.ones((8, 64), np.float32), NamedSharding(mesh, P()))
    scan = lambda s, x: jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, s)[0]
    compiled = jax.jit(scan, out_shardings=NamedSharding(mesh, P())).lower(stack, x).compile()
    collectives = Program.parse(compiled.as_text()).collectives()
    sums = [c for c in collectives if c.kind == "all-reduce"]
    assert sum(c.times for c in sums) == 5 and {c.group for c in sums} == {4}
    assert sum(c.bytes * c.times for c in sums) == 5 * 8 * 64 * 4
