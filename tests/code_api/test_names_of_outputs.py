"""A file that a script wrote is found under the name that it got there.

LibreChat changes names with spaces, brackets and the like: from the next turn on it
mounts `Report (final).csv` as `Report__final_-1ef90d.csv`, and the model does not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from code_api_client import CodeApi, Ref, named
from local_e2b import LocalE2B
from local_e2b_kernels import own_mount_command
from werkzeug.http import parse_options_header

from conftest import Service, e2b_at, http

pytestmark = pytest.mark.skipif(
    not own_mount_command(), reason="this machine allows no mount namespace"
)
NAME = "Jahres Report (für) 2025.csv"
MOUNTED = "Jahres_Report__f_r__2025-1ef90d.csv"


@pytest.fixture(scope="module")
def files_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def api(kernels_ahead_e2b: LocalE2B, files_dir: Path) -> Iterator[CodeApi]:
    settings = {"FILES_DIR": str(files_dir), "RUN_TIMEOUT_S": "40"}
    service = Service(e2b_at(kernels_ahead_e2b.url) | settings)
    service.wait_until_ready()
    yield CodeApi(service)
    http.close()
    service.stop()


@pytest.fixture(scope="module")
def output(api: CodeApi) -> Ref:
    """A file that a script wrote, as a script wrote it."""
    [ref] = api.exec(f"printf 'a\\n' >'{NAME}'; echo done")["files"]
    return dict(ref)


@pytest.fixture
def mounted(output: Ref) -> Ref:
    """The same as LibreChat mounts it on the next turn."""
    return {**output, "name": MOUNTED}


def headers_of(api: CodeApi, ref: Ref) -> tuple[str, dict[str, str]]:
    path = f"/download/{ref['storage_session_id']}/{ref['id']}"
    headers = http.get(api.url + path, timeout=20).headers
    return parse_options_header(headers["Content-Disposition"])


@pytest.mark.parametrize("name", [NAME, "plain.csv", "out/a b.csv", '日本 "1".txt'])
def test_the_probe_and_the_download_say_the_name(api: CodeApi, name: str) -> None:
    [ref] = api.exec(f"mkdir -p out; echo 1 >'{name}'")["files"]
    assert api.probe(ref).json()["originalFilename"] == name
    kind, options = headers_of(api, ref)
    assert (kind, options) == ("attachment", {"filename": name})


def test_an_upload_has_no_name_but_the_one_that_librechat_knows(api: CodeApi) -> None:
    ref = api.upload("my data.csv", b"1")
    assert "originalFilename" not in api.probe(ref).json()
    assert headers_of(api, ref) == ("attachment", {})
    reply = api.exec("ls", files=[{**ref, "name": "my_data.csv"}])
    assert reply["stdout"] == "my_data.csv\n"


def test_both_names_are_there(api: CodeApi, mounted: Ref) -> None:
    reply = api.exec(
        f"cat '{NAME}' {MOUNTED}; ls -l | grep -o '[^ ]*csv -> .*'; find . -type f",
        files=[mounted],
    )
    assert reply["stdout"] == f"a\na\n2025.csv -> {MOUNTED}\n./{MOUNTED}\n"
    assert (reply["files"], reply["stderr"]) == ([], "")
    assert "deleted_files" not in reply


# What is done, the names of the files that come back, what each of them holds, and
# whether the file is named as deleted.
DONE = {
    "written through the link": (f"echo b >>'{NAME}'", {MOUNTED: "a\nb\n"}, False),
    "written by its other name": (f"echo b >>{MOUNTED}", {MOUNTED: "a\nb\n"}, False),
    "opened for writing": (
        f"python3 -c \"open('{NAME}', 'w').write('b')\"",
        {MOUNTED: "b"},
        False,
    ),
    "edited in place": (f"sed -i s/a/b/ '{NAME}'", {MOUNTED: "b\n"}, False),
    "replaced": (f"echo b >x; mv x '{NAME}'", {MOUNTED: "b\n"}, False),
    "removed and written": (f"rm '{NAME}'; echo b >'{NAME}'", {MOUNTED: "b\n"}, False),
    "renamed": (f"mv '{NAME}' new.csv", {"new.csv": "a\n"}, True),
    "moved into a folder": (f"mkdir d; mv '{NAME}' d/", {f"d/{NAME}": "a\n"}, True),
    "removed": (f"rm '{NAME}'", {}, True),
    "removed by its other name": (f"rm {MOUNTED}", {}, True),
    "both removed": ("rm *.csv", {}, True),
    "copied": (f"cp '{NAME}' copy.csv", {"copy.csv": "a\n"}, False),
    "renamed by its other name": (f"mv {MOUNTED} n.csv", {"n.csv": "a\n"}, True),
    "both written": (
        f"rm '{NAME}'; echo b >'{NAME}'; echo c >{MOUNTED}",
        {NAME: "b\n", MOUNTED: "c\n"},
        False,
    ),
    "only read": (f"cat '{NAME}' >/dev/null", {}, False),
}


@pytest.mark.parametrize("what", DONE)
def test_what_is_done_to_a_link_is_done_to_the_file(
    api: CodeApi, mounted: Ref, what: str
) -> None:
    code, files, is_deleted = DONE[what]
    reply = api.exec(code, files=[mounted])
    assert reply["stderr"] == ""
    came = {name: api.download(ref).decode() for name, ref in named(reply).items()}
    assert came == files
    assert reply.get("deleted_files") == ([MOUNTED] if is_deleted else None)


def test_a_packed_folder_has_the_file(api: CodeApi, mounted: Ref) -> None:
    code = (
        "import shutil, zipfile\nshutil.make_archive('/mnt/data/all', 'zip', '.')\n"
        "print(*sorted(zipfile.ZipFile('all.zip').namelist()), sep='|')"
    )
    reply = api.exec(code, "py", files=[mounted])
    assert f"{NAME}|{MOUNTED}" in reply["stdout"]
    assert list(named(reply)) == ["all.zip"]


def test_the_name_lasts_when_the_file_is_changed(api: CodeApi, mounted: Ref) -> None:
    reply = api.exec(f"echo b >>'{NAME}'", files=[mounted])
    assert reply["stdout"] == f"Files written: {NAME}\n"
    [changed] = reply["files"]
    assert changed["name"] == MOUNTED
    assert api.probe(changed).json()["originalFilename"] == NAME
    assert api.exec(f"cat '{NAME}'", files=[changed])["stdout"] == "a\nb\n"


def test_a_name_in_a_folder_is_there_too(api: CodeApi) -> None:
    [ref] = api.exec("mkdir -p 'my out'; echo 1 >'my out/a b.csv'")["files"]
    mounted = {**ref, "name": "my_out/a_b-123456.csv"}
    reply = api.exec("cat 'my out/a b.csv'", files=[mounted])
    assert (reply["stdout"], reply["files"]) == ("1\n", [])


def test_a_file_that_has_the_name_stays(api: CodeApi, mounted: Ref) -> None:
    other = api.upload(NAME, b"other")
    reply = api.exec(f"cat '{NAME}'", files=[mounted, other])
    assert (reply["stdout"], reply["files"]) == ("other", [])


def test_a_folder_in_the_way_of_a_name_harms_nothing(
    api: CodeApi, mounted: Ref
) -> None:
    inside = api.upload(f"{NAME}/x", b"inside")
    reply = api.exec(f"cat '{NAME}/x' {MOUNTED}", files=[mounted, inside])
    assert (reply["stdout"], reply["stderr"]) == ("insidea\n", "")
    assert reply["files"] == []


def test_a_client_that_mounts_the_name_itself_sees_one_file(
    api: CodeApi, output: Ref
) -> None:
    assert api.exec("ls", files=[output])["stdout"] == f"{NAME}\n"


def test_files_of_an_earlier_version_have_no_name(
    api: CodeApi, files_dir: Path
) -> None:
    [ref] = api.exec("echo 1 >'a b.csv'")["files"]
    index = files_dir / ref["storage_session_id"] / "index.json"
    fields = json.loads(index.read_text())
    del fields["names"]
    index.write_text(json.dumps(fields))
    assert "originalFilename" not in api.probe(ref).json()
    assert api.exec("ls", files=[{**ref, "name": "a_b.csv"}])["stdout"] == "a_b.csv\n"
