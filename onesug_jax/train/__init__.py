"""The engine room: mesh, optimizer, jitted update, loop, checkpoints, reports. Knows no model.

A step of the method (pre-training, alignment, a contrastive encoder, a quantiser) is handed in as
a `Stage`; everything here is the same for all of them. Names load on first use, so that serving can
import `onesug_jax.train.checkpoint` without the rest.
"""

import importlib

_HOMES = {
    "FitResult": "loop",
    "NonFiniteLoss": "nonfinite",
    "Preempted": "interruption",
    "Stage": "step",
    "TrainState": "step",
    "check_fit": "checks",
    "fit": "loop",
    "format_history": "history",
    "load_params": "checkpoint",
    "make_mesh": "mesh",
    "make_optimizer": "optimizer",
    "make_train_step": "step",
    "read_history": "history",
}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOMES)
