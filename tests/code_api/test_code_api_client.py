"""LibreChat's own client, @librechat/agents, against the service with real kernels."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from code_api_client import CodeApi
from local_e2b_kernels import own_mount_command
from node_packages import install_packages

from conftest import Service

CLIENT_DIR = Path(__file__).parent / "librechat_agents"
UPLOADS = {"skills/s/run.sh": "echo from the skill\n", "skills/s/отчёт 1.csv": "a\n"}
DRAWS = "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()"
COMMANDS: list[Any] = [
    "bash skills/s/run.sh; cat 'skills/s/отчёт 1.csv'",
    "mkdir -p out; echo 1 >out/a.txt; echo x >b.csv; echo 9 >skills/s/run.sh; echo "
    "done",
    "cat out/a.txt; echo 2 >out/a.txt; rm b.csv",
    "cat out/a.txt; ls; exit 3",
    "echo begun; sleep 30",
    "true",
    {
        "lang": "py",
        "code": "open('c.png', 'wb').write(b'x'); import sys; print(sys.argv[1:])",
        "args": ["a b"],
    },
    {"lang": "d", "code": "void main() {}"},
    {"lang": "py", "code": DRAWS},
    f"python3 - <<'PY'\n{DRAWS}\nPY",
]
(
    READS_SKILL,
    WRITES,
    REWRITES,
    FAILS,
    TOO_LONG,
    SAYS_NOTHING,
    PYTHON,
    MISSING_LANGUAGE,
    DRAWS_BY_PYTHON,
    DRAWS_BY_BASH,
) = range(len(COMMANDS))


@pytest.fixture(scope="module")
def api(
    start_shared: Callable[..., Service], tmp_path_factory: pytest.TempPathFactory
) -> CodeApi:
    if not own_mount_command():
        pytest.skip("no mount namespace: LibreChat's own code tools were NOT run")
    install_packages(CLIENT_DIR, "LibreChat's own code tools were")
    folder = tmp_path_factory.mktemp("files")
    return CodeApi(start_shared(FILES_DIR=str(folder), RUN_TIMEOUT_S="8"))


def run_node(script: str, asked: dict[str, Any], **environ: str) -> Any:
    """What a script of librechat_agents/ prints when it reads `asked`."""
    own = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    finished = subprocess.run(
        ["node", script],
        cwd=CLIENT_DIR,
        env=own | environ,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.fixture(scope="module")
def seen(api: CodeApi) -> dict[str, Any]:
    """What client.mjs made of all commands, in one process of node."""
    asked = {"url": api.url, "uploads": UPLOADS, "commands": COMMANDS}
    return dict(run_node("client.mjs", asked, LIBRECHAT_CODE_BASEURL=api.url))


@pytest.fixture
def results(seen: dict[str, Any]) -> list[dict[str, Any]]:
    return list(seen["results"])


# Uploads at once: as many as the service has threads.
REFUSED = 48
REFUSED_KEY = "a-key-that-is-long-enough-to-be-one"


@pytest.fixture(scope="module")
def full_api(
    start_shared: Callable[..., Service], tmp_path_factory: pytest.TempPathFactory
) -> CodeApi:
    """One with a key, whose folder takes no upload of more than 5 MB."""
    if not own_mount_command():
        pytest.skip("no mount namespace: LibreChat's own code tools were NOT run")
    install_packages(CLIENT_DIR, "LibreChat's own code tools were")
    folder = tmp_path_factory.mktemp("files")
    return CodeApi(
        start_shared(
            FILES_DIR=str(folder),
            FILES_TOTAL_BYTES="5000000",
            PROXY_API_KEY=REFUSED_KEY,
        )
    )


@pytest.mark.parametrize("client", ["axios", "axiosPooled", "nodeFetch", "undici"])
@pytest.mark.parametrize(
    ("key", "path", "status"),
    [
        ("wrong", "/upload", 401),
        ("wrong", "//upload", 401),
        (REFUSED_KEY, "/upload", 413),
    ],
)
def test_all_who_still_send_an_upload_read_why_it_was_refused(
    full_api: CodeApi, client: str, key: str, path: str, status: int
) -> None:
    """With LibreChat's HTTP clients: 48 uploads of 12 MB at once."""
    asked = {
        "url": f"{full_api.url}{path}",
        "client": client,
        "count": REFUSED,
        "sizeBytes": 12_000_000,
        "headers": {"Authorization": f"Bearer {key}"},
    }
    assert run_node("refused.mjs", asked) == [status] * REFUSED


def names(result: dict[str, Any]) -> list[str]:
    return [file["name"] for file in result["artifact"].get("files", [])]


def test_a_chunked_form_keeps_its_names(seen: dict[str, Any]) -> None:
    assert seen["uploaded"]["message"] == "success"
    assert [file["filename"] for file in seen["uploaded"]["files"]] == list(UPLOADS)


def test_files_of_a_skill_are_there_and_never_come_back(
    results: list[dict[str, Any]],
) -> None:
    assert results[READS_SKILL]["read"] == "stdout:\nfrom the skill\na"
    assert names(results[WRITES]) == ["b.csv", "out/a.txt"]


def test_the_model_is_told_of_files(results: list[dict[str, Any]]) -> None:
    assert results[WRITES]["status"] == "success"
    assert "done\n\nGenerated files:\nSession files: 2" in results[WRITES]["read"]


def test_the_next_command_sees_the_files_of_the_last(
    results: list[dict[str, Any]],
) -> None:
    assert results[REWRITES]["read"].startswith("stdout:\n1\n")
    assert results[REWRITES]["artifact"]["deleted_files"] == ["b.csv"]
    assert (
        results[FAILS]["read"]
        == "stdout:\n2\nout\nskills\n\nstderr:\nError: exit code 3"
    )


def test_the_client_believes_in_what_can_be_downloaded(
    api: CodeApi, seen: dict[str, Any]
) -> None:
    known = {file["name"]: file for file in seen["files"]}
    plots = {"plot-1.png", "plot-2.png"}
    assert set(known) == {*UPLOADS, "out/a.txt", "c.png", *plots}
    assert api.download(known["out/a.txt"]) == b"2\n"
    assert api.download(known["skills/s/run.sh"]).decode() == UPLOADS["skills/s/run.sh"]
    # "Run Code" downloads by the session of the run.
    python = seen["results"][PYTHON]["artifact"]
    assert python["files"][0]["storage_session_id"] == python["session_id"]


def test_a_run_over_its_limit_is_told_to_the_model(
    results: list[dict[str, Any]],
) -> None:
    expected = "stdout:\nbegun\n\nstderr:\nError: stopped after 8 s, its time limit"
    assert results[TOO_LONG]["read"] == expected


def test_no_output_is_no_error(results: list[dict[str, Any]]) -> None:
    assert results[SAYS_NOTHING]["read"].startswith("stdout: Empty")
    assert results[SAYS_NOTHING]["status"] == "success"


def test_code_of_run_code_gets_its_arguments(results: list[dict[str, Any]]) -> None:
    assert results[PYTHON]["read"].startswith("stdout:\n['a b']\n")
    assert names(results[PYTHON]) == ["c.png"]


def test_a_missing_language_is_told_to_the_model(results: list[dict[str, Any]]) -> None:
    if shutil.which("dmd"):
        pytest.skip("dmd is installed here")
    assert (
        "dmd is not part of this sandbox's template"
        in results[MISSING_LANGUAGE]["read"]
    )


def test_a_plot_by_run_code_and_by_bash_is_a_file(
    api: CodeApi, seen: dict[str, Any]
) -> None:
    """The second one finds the first one there."""
    results = seen["results"]
    assert names(results[DRAWS_BY_PYTHON]) == ["plot-1.png"]
    assert names(results[DRAWS_BY_BASH]) == ["plot-2.png"]
    for file in seen["files"]:
        if file["name"].startswith("plot-"):
            assert api.download(file).startswith(b"\x89PNG")


def test_what_failed_has_a_line_that_librechat_shows_in_red(
    results: list[dict[str, Any]],
) -> None:
    red = re.compile(r"(?m)^(Traceback|\w*Error:|Exception:)")
    has_red = [bool(red.search(result["read"])) for result in results]
    failed = {FAILS, TOO_LONG}
    if not shutil.which("dmd"):
        failed.add(MISSING_LANGUAGE)
    assert has_red == [index in failed for index in range(len(COMMANDS))]
