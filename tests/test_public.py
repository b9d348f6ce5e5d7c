"""The public interface: every name is imported lazily, and its example runs."""

import ast
import doctest
import inspect
import pathlib

import pytest

import onesug_jax
from tests.test_imports import HEAVY, loaded

OF_A_RUN = {"Suggester", "load_params"}  # their examples read a WORK_DIR: tests/test_pipeline.py


def examples_of(name):
    """The examples in the docstring of a public name."""
    text = inspect.getdoc(getattr(onesug_jax, name)) or ""
    return doctest.DocTestParser().get_doctest(text, {}, name, None, 0)


def run_examples(name, **given):
    """Runs the examples of a public name with these variables; fails with their output."""
    test, printed = examples_of(name), []
    test.globs.update(given)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    failed, tried = runner.run(test, out=printed.append)
    assert tried and not failed, "".join(printed)


def test_importing_the_package_loads_nothing_large():
    names = ("jax", "numpy", "pyarrow", *HEAVY)
    assert loaded("import onesug_jax\nassert 'fit' in dir(onesug_jax)", names) == []


def test_a_name_loads_only_its_own_imports():
    assert loaded("from onesug_jax import UserError", ("jax", "numpy")) == []
    assert loaded("from onesug_jax import Request", ("jax", *HEAVY)) == []


def test_submodules_are_found_beside_the_names():
    assert (
        loaded("from onesug_jax import errors, UserError\nassert errors.UserError is UserError")
        == []
    )


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Sugester'"):
        onesug_jax.Sugester  # noqa: B018


def test_names_equal_the_imports_for_type_checkers():
    tree = ast.parse(pathlib.Path(onesug_jax.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {}
    for node in block.body:
        for alias in node.names:
            renamed = f":{alias.name}" if alias.asname else ""
            place = node.module.removeprefix("onesug_jax.") + renamed
            seen[alias.asname or alias.name] = place
    assert seen == onesug_jax._PLACES
    assert list(seen) and onesug_jax.__all__ == sorted(seen)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in onesug_jax.__all__ if name not in OF_A_RUN])
def test_its_example_runs(name):
    run_examples(name)


@pytest.mark.parametrize("name", sorted(OF_A_RUN))
def test_names_that_read_a_run_have_examples(name):
    assert examples_of(name).examples


@pytest.mark.long
@pytest.mark.parametrize("heading", ["Train on arrays", "Compute a loss"])
def test_the_examples_of_the_documentation_run(heading, project_root, tmp_path):
    text = (project_root / "docs" / "library.md").read_text(encoding="utf-8")
    block = text.split(f"## {heading}")[1].split("```python\n")[1].split("```")[0]
    assert block.count("\n") <= 12  # ten lines and their imports
    made = {}
    exec(block.replace("work/copying", str(tmp_path)), made)
    if "result" in made:
        assert made["result"].step == 10
    else:  # the positive is raised, its negatives are lowered
        assert made["loss"].shape == (1,) and made["slope"][0, 0] < 0 < made["slope"][0, 1]


def test_the_example_of_the_package_runs():
    test = doctest.DocTestParser().get_doctest(onesug_jax.__doc__, {}, "onesug_jax", None, 0)
    assert doctest.DocTestRunner().run(test) == (0, 2)


def test_the_api_page_has_every_name(project_root):
    page = (project_root / "docs" / "api.md").read_text(encoding="utf-8")
    listed = [line.removeprefix("::: ") for line in page.splitlines() if line.startswith(":::")]
    places = onesug_jax._PLACES.items()
    ends = (f"{place.partition(':')[0]}.{place.partition(':')[2] or n}" for n, place in places)
    assert sorted(listed) == sorted(f"onesug_jax.{end}" for end in ends)
