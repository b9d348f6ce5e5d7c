"""The code version follows what a stage can reach, and nothing else."""

import importlib.util
import sys

from onesug_jax import stages
from onesug_jax.code_version import code_version, text_version

STAGE = '''
LIMIT = {limit}
def helper():
    return LIMIT
def unrelated():
    return {other}
def stage(context):
    """{doc}"""
    from onesug_jax.logs import schema
    return helper(), schema
'''


def load(tmp_path, name, **values):
    path = tmp_path / f"{name}.py"
    path.write_text(STAGE.format(**{"limit": 1, "other": 1, "doc": "a", **values}))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.stage


def test_helpers_and_constants_of_the_stage_count_but_its_neighbours_do_not(tmp_path):
    base = code_version(load(tmp_path, "stage_base"))
    assert code_version(load(tmp_path, "stage_other", other=2)) == base
    assert code_version(load(tmp_path, "stage_doc", doc="b")) == base
    assert code_version(load(tmp_path, "stage_limit", limit=2)) != base


def test_imports_are_followed(tmp_path):
    versions = code_version(load(tmp_path, "stage_imports"))
    assert "onesug_jax/logs/schema.py" in versions
    assert "onesug_jax/model/config.py" not in versions
    target = "onesug_jax.train.optimizer:make_optimizer"
    with_target = code_version(load(tmp_path, "stage_target"), [target])
    assert "onesug_jax/train/optimizer.py" in with_target


def test_of_the_stages_only_the_functions_in_use_count():
    """`vocab` opens the completions, and nothing of what else its neighbours open."""
    versions = code_version(stages.STAGES["vocab"].run)
    assert "onesug_jax/logs/completion.py" in versions
    assert not [name for name in versions if "/stages/" in name or "/represent/" in name]
    versions = code_version(stages.STAGES["pretrain"].run)
    assert "onesug_jax/evaluate/evaluator.py" in versions, "dev lists while training"
    assert "onesug_jax/represent/related.py" in versions


def test_comments_docstrings_and_blank_lines_do_not_count():
    bare = "def f(x):\n    return x + 1\n"
    full = '"""Doc."""\n\n# why\ndef f(x):\n    """Doc\n    of f."""\n\n    return x + 1\n'
    assert text_version(full) == text_version(bare)
    assert text_version(bare.replace("1", "2")) != text_version(bare)
