"""docs/settings.md matches the code."""

import importlib.util


def test_the_page_is_written_from_the_code(project_root):
    path = project_root / "launch" / "settings_table.py"
    spec = importlib.util.spec_from_file_location("settings_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (project_root / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == module.table(), "run `python launch/settings_table.py`"
    assert f"| `pretrain.steps` | `2000` | {module.TRAINS_ON} |" in written
    assert "| `ModelConfig.d_model` |" in written
    row = next(line for line in written.splitlines() if line.startswith("| `ModelConfig.d_model`"))
    assert row.endswith("| another WORK_DIR, or `--restart=pretrain` |")
