"""Shared by all tests: a small run, optional data, and eight simulated devices."""

import contextlib
import fcntl
import gc
import os
import pathlib
import shutil
import sys

import pytest

# Eight fake CPU devices for mesh tests; set before anything imports jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    # Tests compile much and compute little, so LLVM does not optimise, and XLA's fusion emitters
    # are off, with which compiling takes 50 % longer. Eight devices on two busy cores may wait for
    # each other longer than XLA's default timeout of 40 seconds.
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
        + " --xla_cpu_use_fusion_emitters=false"
        + " --xla_cpu_collective_call_terminate_timeout_seconds=500"
    ).strip()

ROOT = pathlib.Path(__file__).resolve().parent.parent


SLOW_SECONDS = 1800  # of a slow test, on cores that other work shares


@contextlib.contextmanager
def compiled_in(folder: pathlib.Path):
    """Caches compiled programs in a folder."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": 2**30,
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@contextlib.contextmanager
def one_device():
    """Only the first device; its compiled programs are cached for all tests and later runs.

    Programs for several CPU devices are not cached: read from a cache, they may deadlock.
    """
    import jax

    first = jax.devices()[:1]
    with compiled_in(ROOT / ".pytest_cache" / "compiled"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: first)
        yield


@pytest.fixture(autouse=True)
def devices(request):
    """One device, or eight if a test or its module is marked `eight_devices`."""
    with contextlib.ExitStack() as stack:
        if not request.node.get_closest_marker("eight_devices"):
            stack.enter_context(one_device())
        yield


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_module():
    """Drops compiled programs after each module, because they fill up a worker's memory."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()


def pytest_collection_modifyitems(items):
    """Slow tests have a longer timeout, unless they set one."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


@pytest.fixture(scope="session")
def project_root() -> pathlib.Path:
    """The repository's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> pathlib.Path:
    """A WORK_DIR filled by `run` for a small shop; all workers share it, so copy it."""
    from onesug_jax import main
    from tests.test_pipeline import SMALL

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # shared by all workers
    folder, making = base / "small_run", base / "small_run.making"
    with open(base / "small_run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the others wait
        if not folder.is_dir():
            shutil.rmtree(making, ignore_errors=True)
            with one_device():
                assert main.main(["run", f"--gin.WORK_DIR={making}", *SMALL]) == 0
            making.rename(folder)
    return folder


@pytest.fixture
def spark() -> None:
    """Skips the test if PySpark or Java is missing."""
    from onesug_jax.errors import UserError
    from onesug_jax.logs.spark import find_java

    pytest.importorskip("pyspark", reason='needs PySpark: pip install "onesug_jax[spark]"')
    try:
        find_java()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of optional logs beside a checkout; skips the test if it is missing."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the optional logs in {folder.name}/ beside the checkout")
    return folder


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium by Playwright, from PATH or ONESUG_CHROMIUM."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        pytest.skip("needs the package playwright (pip install playwright)")
    named = os.environ.get("ONESUG_CHROMIUM")
    path = named or shutil.which("chromium") or shutil.which("chrome")
    if not path:
        pytest.skip("needs Chromium: on PATH, or named by ONESUG_CHROMIUM")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()
