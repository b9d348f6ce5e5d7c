"""The README: its commands parse, and the files that it names exist."""

import re
import shlex

import pytest

from onesug_jax import cli, main
from onesug_jax.stages import CONFIGURABLES, STAGES


def commands(text):
    """Lines of the README's bash blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def readme(project_root):
    return (project_root / "README.md").read_text(encoding="utf-8")


def test_every_command_can_be_parsed(readme, project_root):
    """Stages, flags, gin files, gin names and scripts of all commands exist."""
    seen = 0
    for line in commands(readme):
        words = shlex.split(line)
        if words[0] == "bash":
            assert (project_root / words[1]).is_file(), line
        elif words[:3] == ["python", "-m", "onesug_jax.main"]:
            if words[3] == "STAGE":
                continue
            command = cli.parse(words[3:], STAGES, CONFIGURABLES)
            main.read_config(command.gin_files, command.bindings)
        else:
            assert words[0] == "python" and (project_root / words[1]).is_file(), line
        seen += 1
    assert seen >= 8


def test_every_stage_is_named(readme):
    for stage in STAGES:
        assert re.search(rf"\b{stage}\b", readme), stage


def test_the_layout_names_existing_files(readme, project_root):
    layout = readme.split("## Layout")[1].split("```")[1]
    for line in layout.strip().splitlines():
        path = line.split()[0]
        assert (project_root / path).exists(), path
