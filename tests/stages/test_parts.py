"""Parts of a work directory that do not belong together are refused."""

import dataclasses
import json
import shutil

import pytest

from onesug_jax.errors import UserError
from onesug_jax.logs.completion import CompletionIndex
from onesug_jax.model.config import ModelConfig
from onesug_jax.pipeline.workdir import WorkDir
from onesug_jax.stages import trained
from onesug_jax.stages.parts import Parts
from onesug_jax.tasks.features import FeatureSpec


def test_an_index_of_other_queries_is_refused(tmp_path):
    work = WorkDir(str(tmp_path))
    CompletionIndex.from_counts(["lamp", "tent"], [1, 2]).save(work.mined)
    (tmp_path / "index").mkdir()
    with pytest.raises(UserError, match="queries of the prefix index.*run index first"):
        Parts(work).related(FeatureSpec())
    (tmp_path / "index" / "queries.txt").write_text("lamp\nmug\ntent\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"other queries \(3\) than .*mined now holds \(2\); run"):
        Parts(work).related(FeatureSpec())
    shutil.copy(tmp_path / "mined" / "queries.txt", tmp_path / "index" / "queries.txt")
    with pytest.raises(UserError, match="alignment.json"):  # the next check
        Parts(work).related(FeatureSpec())


def test_a_model_of_another_release_is_refused(tmp_path):
    path, config = tmp_path / "model.json", ModelConfig(vocab_size=9, d_model=8)
    path.write_text(json.dumps({"model": dataclasses.asdict(config)}))
    assert trained.stored_config(str(path)) == config
    more, less = dataclasses.asdict(config) | {"copying": True}, dataclasses.asdict(config)
    del less["projected"]  # of models without learned relations
    for stored, name in ((more, "copying"), (less, "projected")):
        path.write_text(json.dumps({"model": stored}))
        with pytest.raises(UserError, match=f"another release .* without {name}; .* train the mod"):
            trained.stored_config(str(path))
