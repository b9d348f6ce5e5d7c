"""A small shop's WORK_DIR with a model of a few steps, made once; and its parts, opened."""

import contextlib
import functools
import os
import shutil

import jax
import pytest

from onesug_jax import main
from tests.test_pipeline import SMALL

QUICK = [
    *SMALL,
    "--gin.STEPS=2",
    "--gin.align.steps=2",
    "--gin.quantize.steps=2",
    "--gin.rank.steps=2",
    "--gin.pretrain.evaluate_every=0",
]
STAGES = "simulate ingest mine align quantize index rank vocab examples pretrain".split()


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """A WORK_DIR that can be served; not to be written to."""
    folder = tmp_path_factory.mktemp("served") / "work"
    with pytest.MonkeyPatch.context() as patch:
        first = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: first)
        for stage in STAGES:
            assert main.main([stage, f"--gin.WORK_DIR={folder}", *QUICK]) == 0, stage
    return folder
