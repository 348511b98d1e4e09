"""LibreChat's own client in a stateful code session, with real kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from code_api_client import CodeApi
from local_e2b import LocalE2B
from local_e2b_kernels import own_mount_command
from node_packages import install_packages
from test_code_api_client import CLIENT_DIR, run_node

from code_api.names import new_id
from conftest import Service

MESSAGES = [
    # Two calls at once, which both carry the ref of the file as it was attached.
    ["echo one >>a.csv; echo 1 >>log", "echo two >>a.csv; echo 2 >>log"],
    ["sort a.csv; sort -n log; X=1; cd /tmp; mkdir -p /mnt/data/empty .hidden"],
    ["echo [$X] $PWD; ls -d empty; rm a.csv; echo 3 >'my file.txt'"],
    ["ls; cat 'my file.txt'; exit 3"],
]


# The version that LibreChat 0.8.8-rc1 has, and the newest that was seen.
VERSIONS = ["agents-3.6.15", "@librechat/agents"]


@pytest.fixture(scope="module", params=VERSIONS)
def seen(
    request: pytest.FixtureRequest,
    e2b: LocalE2B,
    start_shared: Callable[..., Service],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    if not own_mount_command():
        pytest.skip("no mount namespace: LibreChat's own code tools were NOT run")
    install_packages(CLIENT_DIR, "LibreChat's own code tools were")
    folder = tmp_path_factory.mktemp("files")
    api = CodeApi(start_shared(FILES_DIR=str(folder), SESSION_IDLE_S="60"))
    created = e2b.state()["created"]
    asked = {
        "agents": request.param,
        "url": api.url,
        "hint": f"v2:conversation:{new_id()}",
        "file": api.upload("a.csv", b"zero\n"),
        "messages": MESSAGES,
    }
    seen = dict(run_node("stateful.mjs", asked, LIBRECHAT_CODE_BASEURL=api.url))
    seen["sandboxes"] = e2b.state()["created"] - created
    seen["is_new"] = request.param == VERSIONS[-1]
    return seen


def test_all_is_in_one_sandbox_that_was_started_ahead(seen: dict[str, Any]) -> None:
    assert seen["sandboxes"] == 1
    assert (seen["prewarm"]["stdout"], seen["prewarm"]["stderr"]) == ("", "")


def test_two_calls_of_one_message_see_each_others_files(seen: dict[str, Any]) -> None:
    [read] = seen["results"][1]
    assert "one\ntwo\nzero\n1\n2\n" in read


def test_files_last_and_variables_do_not(seen: dict[str, Any]) -> None:
    [read] = seen["results"][2]
    assert "[] /mnt/data\nempty\n" in read


def test_a_file_that_was_removed_stays_so_within_the_turn(seen: dict[str, Any]) -> None:
    """Older versions do not heed that it was, and name it again: so it comes back."""
    [read] = seen["results"][3]
    listed = "empty\nlog\nmy file.txt\n3\n"
    if not seen["is_new"]:
        listed = f"a.csv\n{listed}"
    assert f"stdout:\n{listed}" in read
    assert "Error: exit code 3" in read


def test_the_files_that_the_client_knows_are_the_latest(seen: dict[str, Any]) -> None:
    names = {file["name"] for file in seen["files"]}
    assert {"log", "my file.txt"} <= names
