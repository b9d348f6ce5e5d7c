"""Processes join only if the environment says so; errors name the variable."""

import sys

import pytest

from onesug_jax.errors import UserError
from onesug_jax.train.distributed import Place, failing_at_once, place
from tests.train.several import joined, python

ALL = {"ONESUG_PROCESSES": "2", "ONESUG_PROCESS": "1", "ONESUG_COORDINATOR": "a:1234"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"ONESUG_PROCESSES": "1"}, None),
        ({"ONESUG_PROCESSES": ""}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, Place()),
        ({"ONESUG_PROCESSES": "auto"}, Place()),
        (ALL, Place(2, 1, "a:1234")),
        ({**ALL, "TPU_WORKER_HOSTNAMES": "a,b"}, Place(2, 1, "a:1234")),
    ],
)
def test_the_place_follows_from_the_environment(environment, expected):
    assert place(environment) == expected


@pytest.mark.parametrize(
    ("changed", "messages"),
    [
        ({"ONESUG_PROCESSES": ""}, ["ONESUG_PROCESSES", "found nothing"]),
        ({"ONESUG_PROCESSES": "two"}, ["ONESUG_PROCESSES", "found two"]),
        ({"ONESUG_PROCESSES": "0"}, ["ONESUG_PROCESSES", "found 0"]),
        ({"ONESUG_PROCESS": ""}, ["ONESUG_PROCESS:", "0 to 1", "found nothing"]),
        ({"ONESUG_PROCESS": "2"}, ["ONESUG_PROCESS:", "0 to 1", "found 2"]),
        ({"ONESUG_COORDINATOR": ""}, ["ONESUG_COORDINATOR", "host:port", "''"]),
        ({"ONESUG_COORDINATOR": "a"}, ["ONESUG_COORDINATOR", "host:port", "'a'"]),
        ({"ONESUG_PROCESSES": "auto"}, ["ONESUG_PROCESS='1'", "unset"]),
    ],
)
def test_incomplete_settings_are_refused(changed, messages):
    with pytest.raises(UserError) as error:
        place(ALL | changed)
    assert all(word in str(error.value) for word in messages)


def test_a_single_process_does_not_import_jax():
    code = (
        "import sys\nfrom onesug_jax.train.distributed import start_processes\nstart_processes()\n"
        "print('jax' in sys.modules)"
    )
    assert python("-c", code).communicate()[0] == "False\n"


@pytest.mark.long
def test_auto_without_other_processes_is_an_error():
    words = ["compare", "--run", "nowhere"]
    code = f"import sys\nfrom onesug_jax.main import main\nsys.exit(main({words!r}))"
    process = python("-c", code, ONESUG_PROCESSES="auto")
    assert "neither a Cloud TPU pod nor SLURM" in process.communicate()[1]
    assert process.returncode == 2


@pytest.mark.long
def test_two_processes_see_each_other():
    code = (
        "from onesug_jax.train.distributed import start_processes\n"
        "start_processes(); start_processes()\n"
        "import jax, numpy as np\nfrom jax.experimental import multihost_utils\n"
        "seen = multihost_utils.process_allgather(np.array([jax.process_index() + 5])).ravel()\n"
        "print(jax.process_index(), jax.process_count(), *seen)"
    )
    for index, process in enumerate(joined(2, "-c", code)):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.splitlines()[-1] == f"{index} 2 5 6"


@pytest.mark.long
def test_values_and_errors_reach_all_processes():
    """Also values longer than one message."""
    code = (
        "import sys, time\n"
        "from onesug_jax.errors import UserError\n"
        "from onesug_jax.train import distributed as d\n"
        "d.start_processes()\nme, count = d.place_among()\nd.only_primary_speaks()\n"
        "def decide():\n"
        "    time.sleep(1)\n"
        "    return [d.run_on_primary_and_broadcast(lambda: 'inside'), me]\n"
        "assert d.run_on_primary_and_broadcast(decide) == ['inside', 0]\n"
        "found = d.exchanged(bytes([me]) * (3_000_000 + me))\n"
        "assert [len(x) for x in found] == [3_000_000, 3_000_001], len(found)\n"
        "assert [set(x) for x in found] == [{0}, {1}]\n"
        "d.barrier()\n"
        "print('said by', me)\n"
        "def fail():\n    raise UserError('no such log')\n"
        "try:\n    d.run_on_primary_and_broadcast(fail)\n"
        "except UserError as error:\n    print(error, file=sys.stderr)\n"
        "else:\n    sys.exit(9)\n"
    )
    printed = []
    for process in joined(2, "-c", code):
        printed.append(process.communicate(timeout=120))
        assert process.returncode == 0, printed[-1][1]
    assert "said by 0" in printed[0][0] and "said by" not in printed[1][0]
    assert printed[0][1].rstrip().endswith("no such log")
    assert printed[1][1].rstrip().endswith("process 0 stopped: no such log")


@pytest.mark.long
@pytest.mark.parametrize(
    ("end", "code", "message"),
    [("sys.exit(7)", 7, ""), ("raise OSError('full')", 1, "OSError: full")],
)
def test_a_failure_does_not_wait_for_the_others(end, code, message):
    program = (
        "import sys, time\n"
        "from onesug_jax.train.distributed import failing_at_once, start_processes\n"
        "with failing_at_once():\n"
        "    start_processes()\n"
        "    import jax\n"
        "    if jax.process_index() == 0:\n"
        "        time.sleep(300)\n"
        f"    {end}\n"
    )
    waiting, failing = joined(2, "-c", program)
    try:
        _, err = failing.communicate(timeout=60)
        assert failing.returncode == code
        assert message in err
    finally:
        waiting.kill()
        waiting.communicate()


def test_a_single_process_raises_its_failure():
    with pytest.raises(SystemExit), failing_at_once():
        sys.exit(7)
    with pytest.raises(OSError, match="full"), failing_at_once():
        raise OSError("full")
