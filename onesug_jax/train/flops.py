"""FLOPs of a JAX function, counted on its jaxpr, loops with their trip counts.

Convention: matrix products and convolutions only; a multiply-add is two. Recomputation in the
backward pass counts, because it runs.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.extend import core


def flops(closed: Any, unknown_trips: int = 1) -> float:
    """FLOPs of one call, over all devices.

    Args:
      closed: the result of `jax.make_jaxpr(f)(*args)`, or `traced.jaxpr`.
      unknown_trips: assumed trip count of `while` loops, whose end depends on data.
    """
    return _count(getattr(closed, "jaxpr", closed), unknown_trips)


def _count(jaxpr: Any, unknown_trips: int) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            out, kernel = equation.outvars[0].aval, equation.invars[1].aval
            features = params["dimension_numbers"].rhs_spec[0]
            total += 2.0 * math.prod(out.shape) * math.prod(kernel.shape) / kernel.shape[features]
        elif name == "scan":
            total += params["length"] * _count(params["jaxpr"].jaxpr, unknown_trips)
        elif name == "while":
            inside = _count(params["body_jaxpr"].jaxpr, unknown_trips)
            total += unknown_trips * (inside + _count(params["cond_jaxpr"].jaxpr, unknown_trips))
        elif name == "cond":
            total += max(_count(branch.jaxpr, unknown_trips) for branch in params["branches"])
        else:
            times = math.prod(params["mesh"].shape.values()) if name == "shard_map" else 1
            total += times * sum(_count(inner, unknown_trips) for inner in _inner(params))
    return total


def _dot(equation: Any) -> float:
    (contract, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval, equation.outvars[0].aval
    return 2.0 * math.prod(out.shape) * math.prod(left.shape[i] for i in contract)


def _inner(params: dict[str, Any]) -> list[Any]:
    """The functions that an equation calls; for a custom derivative, the function itself."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in params:
            return [getattr(params[key], "jaxpr", params[key])]
    return [v.jaxpr for v in jax.tree.leaves(params) if isinstance(v, core.ClosedJaxpr)]
