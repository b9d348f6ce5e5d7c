"""Compiler options of a training step on TPUs, and the cache of compiled programs.

The compiler (libtpu) defines the options; an unknown one is refused before any stage runs. Results
depend on them only by rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding

from onesug_jax.errors import UserError


def cache_programs(folder: str) -> None:
    """Caches compiled programs in a folder, unless JAX already has a cache folder."""
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # set at run time
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # many are small


def compiler_options(mesh: Mesh, tpu: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The `compiler_options` of `jax.jit` for a program on this mesh; None if it has no TPUs.

    Args:
      tpu: option -> value.
    """
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    return dict(tpu) if on_tpu and tpu else None


def check_options(mesh: Mesh, options: Mapping[str, Any] | None) -> None:
    """Checks the options by compiling a sum of two numbers.

    Raises:
      UserError: the compiler refuses an option or its value.
    """
    if not options:
        return
    devices, process = list(mesh.devices.flat), jax.process_index()
    # No device of a topology that is not attached belongs to this process: any of them will do.
    device = next((d for d in devices if d.process_index == process), devices[0])
    two = jax.ShapeDtypeStruct((2,), jnp.float32, sharding=SingleDeviceSharding(device))
    for name, value in options.items():
        try:
            jax.jit(jnp.sum, compiler_options={name: value}).lower(two).compile()
        except jax.errors.JaxRuntimeError as error:
            raise UserError(
                f"compiler_options.tpu: {name} = {value!r} is refused by the TPU compiler "
                f"({str(error).splitlines()[0]}); remove it, or use its name in the installed "
                "libtpu."
            ) from None
