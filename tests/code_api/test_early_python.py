"""A Python that is started before its script came runs it as any other would."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from code_api_client import CodeApi, named
from local_e2b import LocalE2B
from local_e2b_kernels import own_mount_command
from pools import wait_until

from conftest import Service, e2b_at, http, text_of

pytestmark = pytest.mark.skipif(
    not own_mount_command(), reason="this machine allows no mount namespace"
)
# Says whether pandas was there before the script imported it.
IS_EARLY = (
    "import sys\nif __name__ == '__main__':\n"
    "    print('pandas' in sys.modules, file=open('early.txt', 'w'))\n"
)
EARLY = f"{IS_EARLY}import pandas\n"


@pytest.fixture(scope="module")
def warm_service(
    kernels_ahead_e2b: LocalE2B, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    settings = {
        "FILES_DIR": str(tmp_path_factory.mktemp("files")),
        "WARM_SANDBOXES": "1",
        "MAX_CONCURRENT_RUNS": "4",
        "RUN_TIMEOUT_S": "40",
    }
    service = Service(e2b_at(kernels_ahead_e2b.url) | settings)
    service.wait_until_ready()
    yield service
    http.close()
    service.stop()


@pytest.fixture(scope="module")
def cold_api(
    kernels_ahead_e2b: LocalE2B, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CodeApi]:
    settings = {"FILES_DIR": str(tmp_path_factory.mktemp("files"))}
    service = Service(e2b_at(kernels_ahead_e2b.url) | settings)
    service.wait_until_ready()
    yield CodeApi(service)
    http.close()
    service.stop()


def wait_until_warm(service: Service) -> None:
    health = f"{service.url}/health"
    wait_until(lambda: http.get(health).json()["warm_ready"] == 1)


@pytest.fixture
def api(warm_service: Service) -> CodeApi:
    """Once a sandbox is ready."""
    wait_until_warm(warm_service)
    return CodeApi(warm_service)


def is_early(api: CodeApi, reply: dict[str, Any]) -> bool:
    return api.download(named(reply)["early.txt"]) == b"True\n"


def without_folder(text: str) -> str:
    return re.sub(r"/\S*/exec-\w+/", "FOLDER/", text)


SCRIPTS = {
    "a value": "print(pandas.Series([1]).sum())",
    "its name and arguments": (
        "import os\nprint(__name__, os.path.basename(__file__), sys.argv[1:])\n"
        "print(os.path.basename(sys.path[0])[:5], os.getcwd(), sys.argv[0] == __file__)"
    ),
    "stdin": "print(repr(sys.stdin.read()), sys.stdin.isatty())",
    "its environment": (
        "import subprocess\nprint(subprocess.run(['env'], capture_output=True,"
        " text=True).stdout.count('EXEC_IMPORTS'))"
    ),
    "open descriptors": "import os; print(sorted(os.listdir('/proc/self/fd'))[:3])",
    "an exception": "def f():\n    return pandas.DataFrame().nothing\nf()",
    "a syntax error": "print('x'\n",
    "an exit code": "sys.exit(3)",
    "stderr": "print('oh', file=sys.stderr)",
    "a warning": "import warnings; warnings.warn('careful')",
    "a file left open": "f = open('left.txt', 'w'); f.write('1' * 10)",
    "spawn": (
        "import multiprocessing as m\ndef double(x): return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    print(m.get_context('spawn').Pool(1).map(double, [1, 2]))"
    ),
    "atexit": "import atexit; atexit.register(print, 'bye')",
    "a killed one": "import os; os.kill(os.getpid(), 9)",
    "a plot": "import matplotlib.pyplot as plt; plt.plot([1]); plt.show()",
    "the modules of numpy": "import numpy; print(numpy.random.default_rng(1).random())",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_runs_as_one_that_was_started_with_its_script(
    api: CodeApi, cold_api: CodeApi, name: str
) -> None:
    seen = []
    for one in (api, cold_api):
        reply = one.exec(EARLY + SCRIPTS[name], "py", args=["a b", "'"])
        if name != "a syntax error":
            assert is_early(one, reply) == (one is api)
        contents = {n: one.download(ref) for n, ref in named(reply).items()}
        contents.pop("early.txt", None)
        seen.append((reply["stdout"], without_folder(reply["stderr"]), contents))
    assert seen[0] == seen[1]


def test_the_limit_holds(api: CodeApi) -> None:
    reply = api.exec(EARLY + "import time; time.sleep(60)", "py", timeout=1000)
    assert is_early(api, reply)
    assert reply["stderr"] == "Error: stopped after 1 s, its time limit\n"


def test_random_numbers_are_a_scripts_own(warm_service: Service, api: CodeApi) -> None:
    code = EARLY + "import random, numpy; print(random.random(), numpy.random.rand())"
    drawn = set()
    for _ in range(2):
        wait_until_warm(warm_service)
        reply = api.exec(code, "py")
        assert is_early(api, reply)
        drawn.update(reply["stdout"].split())
    assert len(drawn) == 4


@pytest.mark.parametrize(
    "code",
    [
        IS_EARLY + "import json",
        EARLY + "import os; os.environ['TZ'] = 'UTC'",
        EARLY + "import os; os.putenv('OMP_NUM_THREADS', '1')",
    ],
)
def test_a_script_that_may_differ_has_a_plain_start(api: CodeApi, code: str) -> None:
    # The word is in the first line of each.
    code = code.replace("'pandas' in", "'pan' + 'das' in")
    reply = api.exec(code, "py")
    assert reply["stderr"] == ""
    assert not is_early(api, reply)


@pytest.mark.parametrize(
    "name", ["pandas.py", "pandas/__init__.py", "six.py", "helper.py"]
)
def test_a_module_of_the_users_own_is_the_one_that_is_imported(
    api: CodeApi, name: str
) -> None:
    ref = api.upload(name, b"VALUE = 'own'\n")
    module = name.partition(".")[0].partition("/")[0]
    reply = api.exec(f"# pandas\nimport {module}; print({module}.VALUE)", "py", [ref])
    assert (reply["stdout"], reply["stderr"]) == ("own\n", "")


def test_settings_of_matplotlib_are_read(api: CodeApi) -> None:
    ref = api.upload("matplotlibrc", b"figure.figsize: 3, 6\n")
    code = "import matplotlib; print(matplotlib.rcParams['figure.figsize'])"
    assert api.exec(code, "py", [ref])["stdout"] == "[3.0, 6.0]\n"


def test_another_language_sees_nothing_of_it(api: CodeApi) -> None:
    code = "cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n' | grep -c ^EXEC_MARK"
    marks = api.exec(f"grep -la $EXEC_MARK /proc/[0-9]*/environ | wc -l; {code} >&2")
    # The shell, and what it started: no Python that waits.
    assert int(marks["stdout"]) <= 4


def test_a_cell_is_as_without_it(warm_service: Service, api: CodeApi) -> None:
    response = warm_service.execute("sorted(name for name in dir() if 'early' in name)")
    assert "\n[]\n" in text_of(response)
    assert "Still running" not in text_of(response)


def test_without_code_api_nothing_is_started(kernels_ahead_e2b: LocalE2B) -> None:
    settings = {"WARM_SANDBOXES": "1"}
    service = Service(e2b_at(kernels_ahead_e2b.url) | settings)
    service.wait_until_ready()
    try:
        wait_until_warm(service)
        code = "import sys; 'exec_program' in sys.modules"
        assert "\nFalse\n" in text_of(service.execute(code))
    finally:
        service.stop()
