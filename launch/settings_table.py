#!/usr/bin/env python3
"""Writes docs/settings.md: every setting, its default, and the effect of changing it in a WORK_DIR.

usage: python launch/settings_table.py
"""

from __future__ import annotations

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from onesug_jax.pipeline.spec import StageSpec  # noqa: E402
from onesug_jax.signatures import is_literal, parameters  # noqa: E402
from onesug_jax.stages import CONFIGURABLES, STAGES  # noqa: E402

TRAINS_ON = "may change: training goes on from the last checkpoint"
NO_EFFECT = "may change: no influence on results"
ANOTHER = "another WORK_DIR, or `--restart={}`"
FREE = "may change: read at each command"
_HEAD = """# Settings

Written by `python launch/settings_table.py` from the code; a test compares it with the code. Every
setting is given as `--gin.NAME=VALUE` or in a gin file, and WORK_DIR/config.gin remembers it. The
last column says what happens where a trained model is in the WORK_DIR already.

A trained state is the same while its model, its vocabulary and what it learns from are the same.
What may change then is noted in `history.jsonl` beside the checkpoints, and `compare` shows it.
"""


def meaning(spec: StageSpec, setting: str) -> str:
    """The effect of changing one setting of one stage."""
    if spec.folder is None or spec.uses_model:
        return FREE
    if spec.ignored(setting):
        return NO_EFFECT
    if spec.trained and spec.may_change(setting):
        return TRAINS_ON
    return ANOTHER.format(spec.name)


def table() -> str:
    """The text of the page."""
    lines = [_HEAD]
    configured = {name for spec in STAGES.values() if spec.folder for name in spec.configures}
    for spec in STAGES.values():
        rows = []
        for name in spec.uses():
            for parameter in parameters(CONFIGURABLES[name]).values():
                setting = f"{name}.{parameter.name}"
                shown = not spec.ignored(setting) or name == spec.name or name not in configured
                if is_literal(parameter.default) and shown:
                    default = repr(parameter.default).replace("|", "\\|")
                    rows.append(f"| `{setting}` | `{default}` | {meaning(spec, setting)} |")
        if rows:
            lines += [f"## {spec.name}", "", f"{spec.summary.capitalize()}.", ""]
            lines += ["| setting | default | changed later |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    (ROOT / "docs" / "settings.md").write_text(table(), encoding="utf-8")
