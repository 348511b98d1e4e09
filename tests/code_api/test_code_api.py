"""LibreChat's code interpreter, as it is
shipped: real sockets, real SDK, real kernels."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from builders import is_running
from code_api_client import ID, CodeApi, named
from local_e2b import LocalE2B
from local_e2b_kernels import own_mount_command

from conftest import Service, e2b_at, http

needs_own_mount = pytest.mark.skipif(
    not own_mount_command(), reason="this machine allows no mount namespace"
)
pytestmark = needs_own_mount


@pytest.fixture(scope="module")
def files_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def code_api_service(kernels_ahead_e2b: LocalE2B, files_dir: Path) -> Iterator[Service]:
    settings = {
        "FILES_DIR": str(files_dir),
        "MAX_FILE_BYTES": "20000000",
        # On a busy machine 12 MiB of output have taken longer than the default.
        "RUN_TIMEOUT_S": "200",
    }
    service = Service(e2b_at(kernels_ahead_e2b.url) | settings)
    service.wait_until_ready()
    yield service
    http.close()
    service.stop()


@pytest.fixture(scope="module")
def api(code_api_service: Service) -> CodeApi:
    return CodeApi(code_api_service)


# --- a script and its end -------------------------------------------------------------


def test_a_command_answers_with_its_output_and_nothing_else(api: CodeApi) -> None:
    reply = api.exec("echo hi", user_id="u1", isTemporary=False, intent="x")
    del reply["session_id"]
    assert reply == {"stdout": "hi\n", "stderr": "", "files": []}


def test_an_empty_output_is_an_empty_string(api: CodeApi) -> None:
    assert api.exec("true")["stdout"] == ""


@pytest.mark.parametrize(
    ("code", "stderr"),
    [
        ("exit 3", "Error: exit code 3\n"),
        ("kill -9 $$", "Error: killed by signal 9, perhaps because memory ran out\n"),
        ("kill -15 $$", "Error: killed by signal 15\n"),
        ("echo oh >&2; exit 1", "oh\nError: exit code 1\n"),
        ("printf oh >&2; exit 1", "oh\nError: exit code 1\n"),
    ],
)
def test_stderr_says_how_a_script_failed(api: CodeApi, code: str, stderr: str) -> None:
    assert api.exec(code)["stderr"] == stderr


def test_a_run_over_its_limit_says_so_after_what_it_printed(api: CodeApi) -> None:
    reply = api.exec("echo begun; sleep 60", timeout=1000)
    assert reply["stdout"] == "begun\n"
    assert reply["stderr"] == "Error: stopped after 1 s, its time limit\n"


def test_what_left_the_process_group_is_killed_at_the_limit(
    api: CodeApi, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    code = f"setsid sh -c 'echo $$ >{pid_file}; exec sleep 60' & sleep 60"
    assert "time limit" in api.exec(code, timeout=1000)["stderr"]
    pid = int(pid_file.read_text())
    # One that nobody has waited for yet is dead all the same.
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"


def test_a_child_in_the_background_is_not_waited_for(api: CodeApi) -> None:
    reply = api.exec("(sleep 40) & echo now", timeout=30_000)
    assert (reply["stdout"], reply["stderr"]) == ("now\n", "")


def test_output_of_a_child_that_outlives_the_script_is_read(api: CodeApi) -> None:
    assert api.exec("(sleep 0.3; echo late) & echo now")["stdout"] == "now\nlate\n"


@pytest.mark.parametrize(
    ("lang", "code", "stdout"),
    [
        ("py", "import sys; print(sys.argv[1:])", "['a b', \"'\"]\n"),
        ("bash", 'printf "%s|" "$@"', "a b|'|"),
        ("js", "console.log(process.argv.slice(2).join())", "a b,'\n"),
        (
            "c",
            "#include <stdio.h>\nint main(int c, char **v) { puts(v[1]); return 0; }",
            "a b\n",
        ),
        ("cpp", "#include <iostream>\nint main() { std::cout << 1; }", "1"),
    ],
)
def test_languages_get_their_arguments(
    api: CodeApi, lang: str, code: str, stdout: str
) -> None:
    reply = api.exec(code, lang, args=["a b", "'"])
    if "is not part of" in reply["stderr"]:
        pytest.skip(reply["stderr"])
    assert (reply["stdout"], reply["stderr"]) == (stdout, "")


@pytest.mark.parametrize(
    ("lang", "stderr"),
    [
        ("d", "Error: the script could not be started: dmd is not part of this"),
        ("cobol", "Error: language cobol is not known: bash, py, js,"),
        ("", "Error: language '' is not known"),
    ],
)
def test_what_cannot_run_is_a_line_in_stderr(
    api: CodeApi, lang: str, stderr: str
) -> None:
    reply = api.exec("x", lang)
    assert reply["stderr"].startswith(stderr)
    assert reply["stdout"] == ""


def test_an_argument_that_no_process_can_have_is_a_line_in_stderr(api: CodeApi) -> None:
    reply = api.exec("true", args=["\0"])
    problem = "Error: the script could not be started: embedded null"
    assert reply["stderr"].startswith(problem)


def test_the_environment_is_no_notebooks(api: CodeApi) -> None:
    lines = api.exec("env; pwd; cat /proc/self/oom_score_adj")["stdout"].splitlines()
    names = {line.partition("=")[0] for line in lines}
    assert not names & {"TERM", "FORCE_COLOR", "CLICOLOR", "JPY_PARENT_PID"}
    assert {"MPLBACKEND=Agg", "R_DEFAULT_DEVICE=png"} <= set(lines)
    [path] = [line for line in lines if line.startswith("PYTHONPATH=")]
    assert path.endswith("/python:/mnt/data")
    # The script's directory, and that it is what ends when memory runs out.
    assert lines[-2:] == ["/mnt/data", "1000"]


def test_stdin_is_empty(api: CodeApi) -> None:
    assert api.exec("cat; echo end")["stdout"] == "end\n"


def test_output_is_exact_up_to_its_limit(api: CodeApi) -> None:
    reply = api.exec("head -c 12582912 /dev/zero | tr '\\0' x")
    assert reply["stdout"] == "x" * 12 * 1024 * 1024
    assert reply["stderr"] == ""


def test_output_over_its_limit_is_cut_with_a_note(api: CodeApi) -> None:
    reply = api.exec("head -c 12582922 /dev/zero | tr '\\0' x; echo e >&2")
    assert len(reply["stdout"]) == 12 * 1024 * 1024
    assert reply["stderr"] == "e\nstdout was cut: 10 bytes more were not kept\n"


def test_output_that_is_no_text_stays_readable(api: CodeApi) -> None:
    reply = api.exec(r"printf 'a\377\0b\xc3\xa9\n'; printf '\xe2\x82' >&2")
    assert reply["stdout"] == "a\ufffd\0b\u00e9\n"
    assert reply["stderr"] == "\ufffd"


def test_a_script_of_20_mb_runs(api: CodeApi, kernels_ahead_e2b: LocalE2B) -> None:
    reply = api.exec("echo begin\n#" + "x" * 20_000_000 + "\necho end")
    assert (reply["stdout"], reply["stderr"]) == ("begin\nend\n", "")


# --- files in and out -----------------------------------------------------------------


def test_a_file_goes_up_and_is_there_for_a_script(api: CodeApi) -> None:
    ref = api.upload("sales.csv", b"a,b\n1,2\n")
    reply = api.exec("cat sales.csv", files=[ref])
    assert (reply["stdout"], reply["files"]) == ("a,b\n1,2\n", [])
    assert api.download(ref) == b"a,b\n1,2\n"


def test_what_a_script_writes_comes_out_under_one_session(api: CodeApi) -> None:
    reply = api.exec("mkdir -p out/x; echo 1 >b.txt; echo 2 >out/x/a.txt; echo done")
    files = named(reply)
    assert list(files) == ["b.txt", "out/x/a.txt"]
    assert {ref["storage_session_id"] for ref in files.values()} == {
        reply["session_id"]
    }
    assert api.download(files["out/x/a.txt"]) == b"2\n"


def test_files_are_named_where_nothing_was_printed(api: CodeApi) -> None:
    reply = api.exec("echo 1 >b.txt; echo 2 >a.txt")
    assert reply["stdout"] == "Files written: a.txt, b.txt\n"


def test_a_failed_script_keeps_its_files(api: CodeApi) -> None:
    reply = api.exec("echo 1 >b.txt; exit 3")
    assert list(named(reply)) == ["b.txt"]


def test_the_next_script_sees_the_files_of_the_last(api: CodeApi) -> None:
    first = api.exec("echo 1 >b.txt")
    second = api.exec("cat b.txt; echo 2 >b.txt", files=first["files"])
    assert second["stdout"] == "1\n"
    new, old = named(second)["b.txt"], named(first)["b.txt"]
    assert new["id"] != old["id"]
    assert (api.download(new), api.download(old)) == (b"2\n", b"1\n")


def test_a_file_is_mounted_under_the_name_in_the_request(api: CodeApi) -> None:
    ref = api.upload("my data.csv", b"1")
    reply = api.exec("cat d/my_data-1.csv", files=[{**ref, "name": "d/my_data-1.csv"}])
    assert reply["stdout"] == "1"


def test_of_two_files_with_one_name_the_last_one_counts(api: CodeApi) -> None:
    refs = [api.upload("a", b"1"), api.upload("a", b"2")]
    assert api.exec("cat a", files=refs)["stdout"] == "2"


@pytest.mark.parametrize("change", ["touch a", "cp a b && mv b a", "printf 1 >a"])
def test_a_file_that_was_written_is_new_with_the_same_bytes_too(
    api: CodeApi, change: str
) -> None:
    ref = api.upload("a", b"1")
    assert list(named(api.exec(change, files=[ref]))) == ["a"]


def test_a_copy_that_keeps_the_time_of_the_original_is_new(api: CodeApi) -> None:
    refs = [api.upload("a", b"1"), api.upload("b", b"2")]
    reply = api.exec("cp -p a b", files=refs)
    assert [api.download(ref) for ref in reply["files"]] == [b"1"]


def test_a_file_that_was_only_read_does_not_come_back(api: CodeApi) -> None:
    assert api.exec("cat a", files=[api.upload("a", b"1")])["files"] == []


def test_a_file_that_was_removed_is_named(api: CodeApi) -> None:
    refs = [api.upload("a", b"1"), api.upload("b", b"1")]
    assert api.exec("rm a", files=refs)["deleted_files"] == ["a"]


def test_files_that_are_read_only_never_come_back(api: CodeApi) -> None:
    reply = api.upload_batch(
        {"skills/s/a.py": b"1", "skills/s/b": b""}, read_only="true"
    )
    refs = [
        {"storage_session_id": reply["storage_session_id"], "id": entry["fileId"]}
        | {"name": entry["filename"], "kind": "skill", "version": 1}
        for entry in reply["files"]
    ]
    assert [ref["name"] for ref in refs] == ["skills/s/a.py", "skills/s/b"]
    code = (
        "cat skills/s/a.py; rm -f skills/s/b; rm -f skills/s/a.py; echo 2 "
        ">skills/s/a.py"
    )
    second = api.exec(code, files=refs)
    assert (second["stdout"], second["files"]) == ("1", [])
    assert "deleted_files" not in second


def test_what_is_no_plain_file_is_skipped(api: CodeApi) -> None:
    reply = api.exec("ln -s /etc/passwd link; mkfifo fifo; mkdir folder; touch real")
    assert list(named(reply)) == ["real"]
    assert reply["stderr"] == ""


@pytest.mark.parametrize(
    "name",
    [".env", "conf/.htaccess", ".config/app.ini", ".git/config", "node_modules/a"],
)
def test_an_input_keeps_its_edits_whatever_its_name(api: CodeApi, name: str) -> None:
    ref = api.upload(name, b"KEY=old\n")
    untouched = api.exec(f"cat {name}", files=[ref])
    assert (untouched["stdout"], untouched["files"]) == ("KEY=old\n", [])
    reply = api.exec(f"sed -i s/old/new/ {name}", files=[ref])
    assert reply["stderr"] == ""
    edited = named(reply)[name]
    assert api.exec(f"cat {name}", files=[edited])["stdout"] == "KEY=new\n"
    assert api.exec(f"rm {name}", files=[edited])["deleted_files"] == [name]


def test_new_hidden_files_come_back_after_the_others(api: CodeApi) -> None:
    reply = api.exec(
        "mkdir -p conf .github/workflows; echo 1 >.env; echo 2 >conf/.htaccess;"
        " echo 3 >.gitignore; echo 4 >.github/workflows/ci.yml; echo 5 >zebra"
    )
    assert [ref["name"] for ref in reply["files"]] == [
        "zebra",
        ".env",
        ".github/workflows/ci.yml",
        ".gitignore",
        "conf/.htaccess",
    ]
    assert api.download(named(reply)["conf/.htaccess"]) == b"2\n"
    assert reply["stderr"] == ""


def test_caches_are_left_out_and_counted(api: CodeApi) -> None:
    reply = api.exec(
        "mkdir -p .git/objects .cache/pip a/node_modules __pycache__ .npm;"
        " touch .git/config .git/objects/{1..213} .cache/pip/x a/node_modules/{1,2};"
        " touch .config; touch real"
    )
    assert list(named(reply)) == ["real", ".config"]
    why = "left out: caches and the like do not come back"
    assert reply["stderr"].splitlines() == [
        f".cache: 1 file was {why}",
        f".git: 214 files were {why}",
        f"a/node_modules: 2 files were {why}",
    ]
    assert "artifact_delivery" not in reply


def test_caches_without_end_are_some_lines(api: CodeApi) -> None:
    reply = api.exec(
        "for n in {10..59}; do mkdir -p $n/.git; touch $n/.git/{1,2}; done"
    )
    lines = reply["stderr"].splitlines()
    assert len(lines) == 21
    assert lines[0].startswith("10/.git: 2 files were left out")
    assert lines[-1] == "30 caches more: 60 files were left out"


@pytest.mark.parametrize("lang", ["js", "py"])
def test_the_script_itself_never_comes_back(api: CodeApi, lang: str) -> None:
    """Node's lies in /mnt/data, under a hidden name."""
    code = {
        "js": "fs.appendFileSync(__filename, '//'); fs.writeFileSync('.new', 'x')",
        "py": "open(__file__, 'a').write('#'); open('.new', 'w').write('x')",
    }[lang]
    if lang == "js":
        code = f"const fs = require('fs'); {code}"
    reply = api.exec(code, lang)
    if "is not part of" in reply["stderr"]:
        pytest.skip(reply["stderr"])
    assert (list(named(reply)), reply["stderr"]) == ([".new"], "")
    assert "deleted_files" not in reply


def test_names_that_cannot_be_kept_are_left_out_with_a_line(api: CodeApi) -> None:
    reply = api.exec(
        r"touch $'a\xff' $'b\nc' 'd\e' good; d=1/2/3/4/5/6/7/8/9/10; mkdir -p $d;"
        " touch $d/deep"
    )
    assert list(named(reply)) == ["good"]
    assert sorted(reply["stderr"].splitlines()) == [
        r"file '1/2/3/4/5/6/7/8/9/10/deep' was left out: "
        r"it lies deeper than 10 folders",
        r"file 'a\udcff' was left out: its name is not UTF-8",
        r"file 'b\nc' was left out: its name has control characters",
        r"file 'd\\e' was left out: its name has a backslash",
    ]


def test_a_name_that_misleads_is_left_out_and_shown_with_escapes(api: CodeApi) -> None:
    reply = api.exec(
        r"touch $'user\u202egnp.exe' $'two\u2028lines' $'iso\u2066late' good"
    )
    assert list(named(reply)) == ["good"]
    why = "which misleads: rename the file"
    assert sorted(reply["stderr"].splitlines()) == [
        rf"file iso\u2066late was left out: its name has U+2066, {why}",
        rf"file two\u2028lines was left out: its name has U+2028, {why}",
        rf"file user\u202egnp.exe was left out: its name has U+202E, {why}",
    ]


def test_an_upload_with_a_name_that_misleads_can_be_used(api: CodeApi) -> None:
    """What Windows copies from a file's properties begins so. LibreChat has it already;
    what this service says itself is escaped."""
    ref = api.upload("\u202areport.csv", b"1\n")
    reply = api.exec("cat *.csv; echo 2 >>*.csv", files=[ref])
    assert reply["stdout"] == "1\n"
    [edited] = reply["files"]
    assert edited["name"] == ref["name"]
    reply = api.exec("echo 3 >>*.csv", files=[edited])
    assert reply["stdout"] == "Files written: \\u202areport.csv\n"
    gone = {**ref, "id": "a" * 21}
    reply = api.exec("true", files=[gone])
    assert reply["stderr"].startswith("input \\u202areport.csv was left out")


@pytest.mark.parametrize(
    "name",
    [
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645.txt",  # Persian needs U+200C
        "\U0001f468\u200d\U0001f469\u200d\U0001f467.png",  # a family, joined
        "\u200f\u200f\u05dc\u05db\u05d9\u05d3\u05d4.PNG",  # Windows, in Hebrew
        "\u062a\u0642\u0631\u064a\u0631 2025.xlsx",
        "Jahres\u00adbericht\u202f2025.pdf",  # of a page's title
    ],
)
def test_names_that_people_use_come_and_go_as_they_are(api: CodeApi, name: str) -> None:
    ref = api.upload(name, b"1")
    reply = api.exec(f"mv '{name}' x; mv x '{name}'", files=[ref])
    assert list(named(reply)) == [name]
    assert reply["stdout"] == f"Files written: {name}\n"
    assert list(named(api.exec(f"echo 1 >'{name}'"))) == [name]


def test_more_files_than_are_taken_are_counted(api: CodeApi) -> None:
    reply = api.exec("for n in $(seq -w 60); do echo $n >f$n; done")
    assert len(reply["files"]) == 50
    assert "file f51 was left out: there are more than 50 files\n" in reply["stderr"]
    assert reply["artifact_delivery"] == {
        "code": "artifact_delivery_failed",
        "status": "partial",
        "attempted": 60,
        "delivered": 50,
        "failed": 10,
    }


def test_a_file_that_is_too_large_is_left_out_and_exactly_the_limit_is_not(
    api: CodeApi,
) -> None:
    reply = api.exec(
        "truncate -s 20000001 big; truncate -s 20000000 fits; truncate -s 9T huge"
    )
    assert list(named(reply)) == ["fits"]
    assert (
        "file big was left out: it is larger than 20,000,000 bytes\n"
        in (reply["stderr"])
    )
    assert len(api.download(named(reply)["fits"])) == 20_000_000


def test_large_files_go_in_and_out_unchanged(
    api: CodeApi, kernels_ahead_e2b: LocalE2B
) -> None:
    data = os.urandom(10_000_000)
    ref = api.upload("a.bin", data)
    reply = api.exec("cp a.bin b.bin; sha256sum <a.bin", files=[ref])
    assert reply["stdout"].split()[0] == hashlib.sha256(data).hexdigest()
    assert api.download(named(reply)["b.bin"]) == data


def test_a_small_exec_is_one_create_one_run_and_one_kill(
    api: CodeApi, kernels_ahead_e2b: LocalE2B
) -> None:
    """Two inputs, of which one more byte would not be small; two outputs, too."""
    refs = [api.upload(name, b"1" * 128 * 1024) for name in "ab"]
    code = "for name in c d; do cat a b >$name; done"
    assert kinds_asked(api, kernels_ahead_e2b, code, refs) == ["create", "run", "kill"]


def test_what_is_not_small_is_one_write_and_a_read_for_each(
    api: CodeApi, kernels_ahead_e2b: LocalE2B
) -> None:
    refs = [api.upload(name, b"1" * 128 * 1024) for name in "ab"]
    refs += [api.upload(name, b"2" * 200_000) for name in ("dir/c", "d")]
    code = "cat a b d >e; cat e e >f; cat e f >g; cat d >dir/c; ls"
    kinds = kinds_asked(api, kernels_ahead_e2b, code, refs)
    # Of the outputs the smallest comes in the cell: dir/c.
    assert kinds == ["create", "write", "run", "read", "read", "read", "kill"]


def test_a_long_script_is_written_too(
    api: CodeApi, kernels_ahead_e2b: LocalE2B
) -> None:
    for size, has_write in ((100_000, False), (100_001, True)):
        kinds = kinds_asked(api, kernels_ahead_e2b, "#" * size, [])
        assert ("write" in kinds) == has_write


def kinds_asked(api: CodeApi, e2b: LocalE2B, code: str, refs: list[Any]) -> list[str]:
    """The kinds of the requests to E2B for an exec, none of which failed."""
    e2b.wait_for(lambda state: not state["alive"])
    before = len(e2b.state()["requests"])
    reply = api.exec(code, files=refs)
    assert "left out" not in reply["stderr"]
    e2b.wait_for(lambda state: not state["alive"])
    return [request["kind"] for request in e2b.state()["requests"][before:]]


# --- what LibreChat's read_file, create_file, edit_file and image reading send --------


def test_a_file_is_read_whole_by_cat(api: CodeApi) -> None:
    text = "é" * 5 * 1024 * 1024  # 10 MiB, the most that edit_file takes
    ref = api.upload("it's.txt", text.encode())
    started = time.monotonic()
    reply = api.exec(r"cat '/mnt/data/it'\''s.txt'", files=[ref])
    assert time.monotonic() - started < 15
    assert (reply["stdout"] == text, reply["stderr"]) == (True, "")


def test_an_empty_file_and_a_missing_one_read_differently(api: CodeApi) -> None:
    reply = api.exec("cat '/mnt/data/empty'", files=[api.upload("empty", b"")])
    assert (reply["stdout"], reply["stderr"]) == ("", "")
    reply = api.exec("cat '/mnt/data/missing'")
    assert reply["stdout"] == ""
    assert "No such file or directory" in reply["stderr"]


def test_a_file_is_written_by_a_heredoc_with_base64(api: CodeApi) -> None:
    data = os.urandom(1_000_000)
    code = (
        "python3 - <<'PY'\nimport base64, json\n"
        f"data = base64.b64decode('{base64.b64encode(data).decode()}')\n"
        "open('/mnt/data/new.bin', 'wb').write(data)\n"
        "print(json.dumps({'status': 'OK', 'bytes': len(data)}))\nPY"
    )
    reply = api.exec(code)
    assert json.loads(reply["stdout"]) == {"status": "OK", "bytes": 1_000_000}
    assert api.download(named(reply)["new.bin"]) == data


def test_a_picture_is_read_in_pieces(api: CodeApi) -> None:
    data = os.urandom(70_000)
    ref = api.upload("plot.png", data)
    pieces = [
        api.exec(
            "python3 - <<'PY'\nimport base64\nfile = open('/mnt/data/plot.png', 'rb')\n"
            f"file.seek({start})\nprint(base64.b64encode(file.read(32768)).decode())\n"
            "PY",
            files=[ref],
        )["stdout"]
        for start in range(0, 70_000, 32_768)
    ]
    assert b"".join(map(base64.b64decode, pieces)) == data


# --- what is stored -------------------------------------------------------------------


def test_a_probe_says_when_a_file_came(api: CodeApi) -> None:
    reply = api.probe(api.upload("a", b"1")).json()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", reply["lastModified"]
    )


def test_a_deleted_file_is_gone_and_its_siblings_are_not(
    api: CodeApi, files_dir: Path
) -> None:
    reply = api.upload_batch({"a": b"1", "b": b"2"})
    session_id = reply["storage_session_id"]
    ids = [entry["fileId"] for entry in reply["files"]]
    for number, file_id in enumerate(ids):
        urls = [
            f"{api.url}/sessions/{session_id}/objects/{file_id}",
            f"{api.url}/files/{session_id}/{file_id}",
        ]
        answers = [http.delete(url).status_code for url in [urls[0], *urls]]
        assert answers == [200, 404, 404]
        assert (files_dir / session_id).exists() == (number == 0)


@pytest.mark.parametrize(
    "path",
    [
        "/download/{0}/{0}",
        "/sessions/{0}/objects/{0}",
        "/download/x/y",
        "/download/..%2f..%2f/etc",
        "/sessions/index.json/objects/index.json",
    ],
)
def test_ids_that_stand_for_nothing_are_404(api: CodeApi, path: str) -> None:
    response = http.get(api.url + path.format("a" * 21))
    assert response.status_code == 404
    assert set(response.json()) == {"error", "message"}


def test_a_download_is_no_page(api: CodeApi) -> None:
    ref = api.upload("a.html", b"<script>")
    path = f"/download/{ref['storage_session_id']}/{ref['id']}?kind=user&id=u1"
    headers = http.get(api.url + path).headers
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Content-Disposition"] == "attachment"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_an_input_that_is_gone_is_a_line_in_stderr(api: CodeApi) -> None:
    ref = {"id": "a" * 21, "storage_session_id": "b" * 21, "name": "old.csv"}
    reply = api.exec("echo on", files=[ref])
    assert reply["stdout"] == "on\n"
    assert reply["stderr"] == "input old.csv was left out: it is not there any more\n"


# --- uploads --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["отчёт за май.csv", "a b/c'd/é.txt", "日本.csv", "a;b=c.txt"]
)
def test_names_are_echoed_as_they_came(api: CodeApi, name: str) -> None:
    boundary = "b1"
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; '
        f'filename="{name}"\r\n\r\nx\r\n--{boundary}--\r\n'
    ).encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    # In pieces, so that it goes without a Content-Length.
    response = api.post(
        "/upload/batch", data=iter([body[:50], body[50:]]), headers=headers
    )
    assert response.json()["files"][0]["filename"] == name


def test_a_file_larger_than_the_limit_is_413_and_exactly_the_limit_is_not(
    api: CodeApi,
) -> None:
    api.upload("a", bytes(20_000_000))
    response = api.post("/upload", files={"file": ("a", bytes(20_000_001))})
    assert response.status_code == 413
    assert response.json()["error"] == "request_entity_too_large"


def test_a_file_that_is_refused_is_counted(
    api: CodeApi, code_api_service: Service
) -> None:
    name = 'e2b_proxy_uploads_total{outcome="refused"} '

    def count() -> float:
        metrics = http.get(f"{code_api_service.url}/metrics").text
        return float(metrics.partition(name)[2].partition("\n")[0] or 0)

    before = count()
    assert api.post("/upload", files={"file": ("../a", b"1")}).status_code == 400
    assert count() == before + 1


def test_in_a_batch_the_others_stay(api: CodeApi, files_dir: Path) -> None:
    files = {"big": bytes(20_000_001), "good": b"1", "../evil": b"2"}
    reply = api.upload_batch(files)
    assert (reply["message"], reply["failed"]) == ("partial_success", 2)
    statuses = [entry["status"] for entry in reply["files"]]
    assert statuses == ["error", "success", "error"]
    kept = os.listdir(files_dir / reply["storage_session_id"])
    assert sorted(kept) == sorted([reply["files"][1]["fileId"], "index.json"])


BAD_NAMES = [
    "../a",
    "/a",
    ".",
    "a/../b",
    "a\\b",
    "a" * 257,
    "a\x07b",
    "/".join("abcdefghijk"),
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused_going_up_and_skipped_going_in(
    api: CodeApi, name: str
) -> None:
    # In a quoted string a backslash has to be doubled.
    sent = name.replace("\\", "\\\\")
    response = api.post("/upload", files={"file": (sent, b"1")})
    assert response.status_code == 400, response.text
    good = api.upload("good", b"1")
    reply = api.exec("ls -A", files=[{**good, "name": name}])
    assert reply["stdout"] == ""
    assert "was left out: it" in reply["stderr"]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "multipart/form-data; boundary=x"),
        (b"--x\r\nContent-Disp", "multipart/form-data; boundary=x"),
        (b"--x--\r\n", "multipart/form-data; boundary=x"),
        (b"x", "multipart/form-data"),
        (b"x", "text/plain"),
        (
            b'--x\r\nContent-Disposition: form-data; name="kind"\r\n\r\nuser\r\n'
            b"--x--\r\n",
        )
        * 1
        + ("multipart/form-data; boundary=x",),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            b"half",
            "multipart/form-data; boundary=x",
        ),
    ],
)
def test_a_form_without_a_whole_file_is_400(
    api: CodeApi, body: bytes, content_type: str, files_dir: Path
) -> None:
    response = api.post("/upload", data=body, headers={"Content-Type": content_type})
    assert response.status_code == 400, response.text
    assert not list(files_dir.glob(".*"))


# --- what else is asked ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "Expected a JSON object"),
        ({"lang": "bash"}, "code must be a string"),
        ({"code": "x"}, "lang must be a string"),
        ({"lang": "bash", "code": "\ud800"}, "lone surrogate"),
        ({"lang": "bash", "code": "x", "args": "y"}, "args must be"),
        ({"lang": "bash", "code": "x", "args": [1]}, "args has an entry"),
        ({"lang": "bash", "code": "x", "files": {"a": 1}}, "files must be"),
    ],
)
def test_a_body_that_is_no_exec_is_400(api: CodeApi, body: Any, message: str) -> None:
    response = api.post("/exec", json=body)
    assert response.status_code == 400
    assert message in response.json()["message"]


def test_a_body_over_32_mib_is_413(api: CodeApi) -> None:
    response = api.post(
        "/exec", json={"lang": "bash", "code": "x" * (32 * 1024 * 1024)}
    )
    assert response.status_code == 413


def test_programs_and_the_stateful_profile_are_refused(api: CodeApi) -> None:
    response = api.post("/exec/programmatic", json={})
    assert response.status_code == 400
    assert response.json()["error"] == "unsupported_capability"
    body = {"lang": "bash", "code": "echo hi"}
    headers = {"X-CodeAPI-Expected-Profile": "stateful"}
    response = api.post("/exec", json=body, headers=headers)
    assert response.status_code == 409
    assert response.json()["error"] == "execution_profile_mismatch"
    headers = {"X-CodeAPI-Expected-Profile": "default"}
    assert api.post("/exec", json=body, headers=headers).json()["stdout"] == "hi\n"


def test_eight_execs_and_fifty_downloads_at_once(api: CodeApi) -> None:
    ref = api.upload("a", b"x" * 100_000)
    with ThreadPoolExecutor(58) as threads:
        execs = [
            threads.submit(api.exec, f"cat a; echo {n} >o", files=[ref])
            for n in range(8)
        ]
        downloads = [
            threads.submit(
                requests.get,
                f"{api.url}/download/{ref['storage_session_id']}/{ref['id']}",
                timeout=60,
            )
            for _ in range(50)
        ]
        assert {len(one.result().content) for one in downloads} == {100_000}
        replies = [one.result() for one in execs]
    assert [api.download(reply["files"][0]) for reply in replies] == [
        b"%d\n" % n for n in range(8)
    ]


def test_nothing_is_left_in_the_folder_that_no_session_holds(
    api: CodeApi, files_dir: Path
) -> None:
    assert not [path for path in files_dir.iterdir() if not ID.fullmatch(path.name)]


@pytest.fixture
def start_code_api(
    start_shared: Callable[..., Service], tmp_path: Path
) -> Callable[..., CodeApi]:
    def start_code_api(**environ: str) -> CodeApi:
        return CodeApi(start_shared(FILES_DIR=str(tmp_path), **environ))

    return start_code_api


def test_without_a_folder_the_routes_name_the_setting(
    start_shared: Callable[..., Service],
) -> None:
    api = CodeApi(start_shared())
    response = api.post("/exec", json={"lang": "bash", "code": "true"})
    assert response.status_code == 404
    assert "FILES_DIR" in response.json()["message"]


def test_the_key_is_taken_as_bearer_as_basic_and_as_x_api_key(
    start_code_api: Callable[..., CodeApi],
) -> None:
    api = start_code_api(PROXY_API_KEY="k:e/y")
    path = f"{api.url}/sessions/{'a' * 21}/objects/{'a' * 21}"
    statuses = [
        requests.get(path, timeout=10, **how).status_code  # type: ignore[arg-type]
        for how in (
            {},
            {"auth": ("e2b", "wrong")},
            {"headers": {"Authorization": "Basic !"}},
            {"headers": {"Authorization": "Bearer k:e/y"}},
            {"auth": ("e2b", "k:e/y")},
            {"headers": {"X-API-Key": "k:e/y"}},
            {"headers": {"X-API-Key": "wrong"}},
            {"headers": {"X-API-Key": "k:e/y", "Authorization": "Bearer wrong"}},
        )
    ]
    assert statuses == [401, 401, 401, 404, 404, 404, 401, 401]
    assert requests.get(path, timeout=10).json()["error"] == "unauthorized"


def test_when_all_slots_are_taken_the_answer_is_429(
    start_code_api: Callable[..., CodeApi], e2b: LocalE2B, tmp_path: Path
) -> None:
    api = start_code_api(MAX_CONCURRENT_RUNS="1")
    may_end = tmp_path / "may_end"
    with ThreadPoolExecutor() as threads:
        code = f"until [ -e '{may_end}' ]; do sleep 0.05; done"
        first = threads.submit(api.exec, code)
        e2b.wait_for(is_running)
        response = api.post("/exec", json={"lang": "bash", "code": "true"})
        may_end.touch()
        assert response.status_code == 429
        assert response.json()["error"] == "rate_limited"
        assert response.json()["retry_after_seconds"] == 5
        assert first.result()["stderr"] == ""


def test_a_folder_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    service = Service({"FILES_DIR": str(missing)})
    service.process.wait(20)
    service.stop()
    assert service.process.returncode == os.EX_CONFIG
    problem = f"FILES_DIR cannot be used: {missing}: No such file or directory"
    assert problem in "".join(service.lines)
