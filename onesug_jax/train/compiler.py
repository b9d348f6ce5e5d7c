"""Options that a training step is compiled with on TPUs, and where compiled programs are cached.

Which options there are is the compiler's affair (libtpu's); one that it does not know is refused
before any stage runs. Results do not depend on them but for rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding

from onesug_jax.errors import UserError


def cache_programs(folder: str) -> None:
    """Compiled programs stay in a folder, unless JAX has another place for them."""
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # set at run time
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # many are small


def compiler_options(mesh: Mesh, tpu: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """What `jax.jit` takes as `compiler_options` for a program on this mesh.

    Args:
      tpu: option -> value, for TPUs; elsewhere nothing is set.
    """
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    return dict(tpu) if on_tpu and tpu else None


def check_options(mesh: Mesh, options: Mapping[str, Any] | None) -> None:
    """Compiles a sum of two numbers with the options.

    Raises:
      UserError: the compiler does not know one of them, or its value.
    """
    if not options:
        return
    here = jax.process_index()
    own = [device for device in mesh.devices.flat if device.process_index == here]
    device = (own or list(mesh.devices.flat))[0]  # of a slice that is not here, any
    two = jax.ShapeDtypeStruct((2,), jnp.float32, sharding=SingleDeviceSharding(device))
    for name, value in options.items():
        try:
            jax.jit(jnp.sum, compiler_options={name: value}).lower(two).compile()
        except jax.errors.JaxRuntimeError as error:
            raise UserError(
                f"compiler_options.tpu: {name} = {value!r} is refused by the TPU compiler "
                f"({str(error).splitlines()[0]}); leave it out, or take the name that the "
                "installed libtpu has for it."
            ) from None
