"""Compiler options: only TPUs have them."""

import types

import jax
import numpy as np

from onesug_jax.train.compiler import check_options, compiler_options
from onesug_jax.train.mesh import make_mesh


def test_options_are_only_for_tpus():
    mesh = make_mesh(devices=jax.devices()[:2])
    assert compiler_options(mesh, {"xla_tpu_enable_latency_hiding_scheduler": True}) is None
    slice_ = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform="tpu")]))
    assert compiler_options(slice_, {"a": 1}) == {"a": 1}
    assert compiler_options(slice_, None) is None and compiler_options(slice_, {}) is None


def test_without_options_nothing_is_compiled():
    check_options(None, None)
