"""What check.py says, of a service that works and of each way in which one does not.

The service itself is asked where it can be; how it fails is played by a server here.
"""

from __future__ import annotations

import functools
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import check
import pytest
from builders import answer_with, encoded, figure, picture, stdout
from local_e2b import LocalE2B

from conftest import Service

pytestmark = pytest.mark.usefixtures("untraced")

ROOT = Path(__file__).parents[2]
PNG = check.PNG + b"the rest of a picture"
DATA_URI = check.DATA_URI + encoded(PNG)
HEALTHY = {"status": "healthy", "version": "1.0.0"}
TEXT = (
    f"**Console Output:**\n```\n{check.PRINTED}\n```\n\n"
    f"**Executed Code:**\n```python\n{check.CODE}```"
)
REFUSED = (
    "**Execution Error:**\n```\nE2B refused the service's key.\n```\n\n"
    "**Executed Code:**\n```python\nsecret_plan()\n```"
)

Checked = tuple[int, str, str]
RunCheck = Callable[..., Checked]


@pytest.fixture
def run_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> RunCheck:
    """`run_check(*arguments)` gives exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROXY_API_KEY", raising=False)

    def run(*arguments: str, patience: check.Patience = check.PATIENCE) -> Checked:
        code = check.main(arguments, patience)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@dataclass
class Answer:
    body: bytes | str | list[Any] | dict[str, Any] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    def bytes(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        if isinstance(self.body, str):
            return self.body.encode()
        return json.dumps(self.body).encode()


@dataclass
class Asked:
    path: str
    headers: Any
    body: bytes


class Played:
    """A server that gives these answers by path; a path without one is left waiting."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[Asked] = []
        self.is_over = threading.Event()
        played = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                played.asked.append(Asked(self.path, self.headers, body))
                answer = played.answers.get(self.path)
                if answer is None:
                    played.is_over.wait()
                elif answer.status == 0:
                    self.wfile.write(answer.bytes())
                else:
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(answer.bytes())

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.answers["/health"] = Answer(HEALTHY)
        self.run_answers(reply(DATA_URI))

    def run_answers(self, body: Any, outcome: str = "ok") -> None:
        headers = {"X-Run-Outcome": outcome} if outcome else {}
        self.answers["/execute"] = Answer(body, headers=headers)

    def __enter__(self) -> Played:
        # Looked at often, for the end not to be waited for.
        arguments = {"poll_interval": 0.01}
        threading.Thread(target=self.server.serve_forever, kwargs=arguments).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def played() -> Iterator[Played]:
    """A service that works, for one answer of it to be replaced."""
    with Played() as service:
        yield service


@pytest.fixture
def check_played(played: Played, run_check: RunCheck) -> RunCheck:
    return functools.partial(run_check, "--url", played.url)


def reply(*picture_urls: str, text: str = TEXT) -> list[Any]:
    pictures = [
        {"type": "image_url", "image_url": {"url": url}} for url in picture_urls
    ]
    return [[{"type": "text", "text": text}], {"content": pictures}]


def assert_one_line(checked: Checked, *words: str) -> None:
    code, out, err = checked
    assert (code, out) == (1, "")
    assert err.startswith("Not working: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


# --- the service itself ---------------------------------------------------------------


@pytest.fixture
def drawn(scripted_e2b: LocalE2B) -> bytes:
    """The picture that every run draws."""
    png = picture()
    answer_with(scripted_e2b, stdout(f"{check.PRINTED}\n"), figure(png))
    return png


def test_the_service_passes_until_e2b_refuses_which_it_tells_in_its_own_words(
    drawn: bytes,
    scripted_e2b: LocalE2B,
    default_service: Service,
    run_check: RunCheck,
    tmp_path: Path,
) -> None:
    code, out, err = run_check("--url", default_service.url)
    assert (code, err) == (0, "")
    assert check.PRINTED in out
    assert (tmp_path / "sine.png").read_bytes() == drawn
    scripted_e2b.set_script(
        {"create": {"status": 401, "body": {"code": 401, "message": "no"}}}
    )
    assert_one_line(run_check("--url", default_service.url), "unavailable", "E2B")


def test_the_service_passes_with_a_key_and_published_pictures(
    drawn: bytes,
    start_service: Callable[..., Service],
    run_check: RunCheck,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    service = start_service(
        PROXY_API_KEY="the-key", IMAGE_DIR=str(folder), IMAGE_URL="/images/e2b"
    )
    assert_one_line(run_check("--url", service.url), "wants a key", "PROXY_API_KEY")
    assert_one_line(
        run_check("--url", service.url, "--key", "other"), "refuses this key"
    )
    code, out, err = run_check("--url", service.url, "--key", "the-key")
    assert (code, err) == (0, "")
    [published] = folder.iterdir()
    assert f"Picture published at /images/e2b/{published.name}" in out
    assert published.read_bytes() == drawn


# --- how a service can fail -----------------------------------------------------------


def test_it_needs_nothing_but_python(played: Played, tmp_path: Path) -> None:
    """As the documentation calls it: without a virtual environment."""
    isolated = [sys.executable, "-I", "-S", str(ROOT / "dev" / "check.py")]
    out = tmp_path / "sine.png"
    finished = subprocess.run(
        [*isolated, "--url", played.url, "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr
    assert out.read_bytes() == PNG


def test_a_service_that_works_leaves_its_text_and_the_picture(
    played: Played, check_played: RunCheck, tmp_path: Path
) -> None:
    code, out, err = check_played()
    assert (code, err) == (0, "")
    assert check.PRINTED in out
    assert out.endswith("Picture saved: sine.png\n")
    assert (tmp_path / "sine.png").read_bytes() == PNG
    health, run = played.asked
    assert health.path == "/health"
    assert json.loads(run.body) == {"code": check.CODE}
    assert run.headers["Content-Type"] == "application/json"
    assert "Authorization" not in run.headers


@pytest.mark.parametrize("by", ["argument", "variable", "file"])
def test_the_key_goes_to_the_service_as_a_bearer_token(
    played: Played,
    check_played: RunCheck,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    by: str,
) -> None:
    if by == "variable":
        monkeypatch.setenv("PROXY_API_KEY", "the-key")
    if by == "file":
        tmp_path.joinpath("proxy.key").write_text("the-key\n")
        monkeypatch.setenv("PROXY_API_KEY_FILE", str(tmp_path / "proxy.key"))
    assert check_played(*(["--key", "the-key"] if by == "argument" else []))[0] == 0
    assert played.asked[-1].headers["Authorization"] == "Bearer the-key"


def test_a_file_of_the_key_that_cannot_be_read_is_named(
    check_played: RunCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROXY_API_KEY_FILE", "/no/such.key")
    assert_one_line(check_played(), "PROXY_API_KEY_FILE", "/no/such.key")


def test_the_key_goes_nowhere_else(played: Played, check_played: RunCheck) -> None:
    with Played() as other:
        other.answers["/x.png"] = Answer(PNG)
        played.run_answers(reply(f"{other.url}/x.png"))
        assert check_played("--key", "the-key")[0] == 0
    assert "Authorization" in played.asked[-1].headers
    assert "Authorization" not in other.asked[-1].headers


@pytest.mark.parametrize("start", ["address", "path"])
def test_a_published_picture_is_fetched(
    played: Played, check_played: RunCheck, tmp_path: Path, start: str
) -> None:
    played.answers["/images/abc.png"] = Answer(PNG)
    at = played.url if start == "address" else ""
    played.run_answers(reply(f"{at}/images/abc.png"))
    assert check_played("--out", "other.png")[0] == 0
    assert (tmp_path / "other.png").read_bytes() == PNG


def test_a_picture_that_librechat_serves_is_named_and_not_fetched(
    played: Played, check_played: RunCheck, tmp_path: Path
) -> None:
    played.answers["/images/e2b/abc.png"] = Answer(status=404)
    played.run_answers(reply("/images/e2b/abc.png"))
    code, out, _ = check_played()
    assert code == 0
    assert "/images/e2b/abc.png" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/health", "/execute"])
def test_a_service_that_hangs_is_told_from_one_that_is_not_there(
    played: Played, check_played: RunCheck, path: str
) -> None:
    del played.answers[path]
    checked = check_played(patience=check.Patience(short_s=0.5, run_s=0.5))
    assert_one_line(checked, "no answer", path, "within 0.5 s", "log")


@pytest.mark.parametrize("path", ["/health", "/execute"])
def test_a_service_that_goes_away_is_said_to_be_away(
    played: Played, check_played: RunCheck, path: str
) -> None:
    played.answers[path] = Answer(b"", status=0)
    assert_one_line(check_played(), "nothing answers", path, "make demo", "--url")


@pytest.mark.parametrize(
    ("health", "words"),
    [
        (Answer(b"SSH-2.0-OpenSSH\r\n", 0), ["could not be asked"]),
        (Answer({"status": "unhealthy"}, 503), ["503", "unhealthy", "log"]),
        (Answer({"status": "starting"}), ["200", "'starting'"]),
        (Answer("<html>hello</html>"), ["another program", "PORT", "--url"]),
        (Answer(["healthy"]), ["another program"]),
        (Answer({}, 404), ["404", "another program"]),
        (Answer("", 302, {"Location": "/elsewhere"}), ["302", "another program"]),
        (Answer(HEALTHY, 502), ["502"]),
        (
            Answer(HEALTHY, headers={"Content-Length": "99"}),
            ["could not be asked", "IncompleteRead"],
        ),
    ],
    ids=[
        "no HTTP",
        "503",
        "starting",
        "html",
        "a list",
        "404",
        "redirect",
        "502",
        "cut",
    ],
)
def test_a_service_that_is_not_healthy_is_asked_for_nothing_more(
    played: Played, check_played: RunCheck, health: Answer, words: list[str]
) -> None:
    played.answers["/health"] = health
    assert_one_line(check_played(), f"{played.url}/health", *words)
    assert len(played.asked) == 1


def error(message: str) -> dict[str, Any]:
    return {"error": {"code": "code", "message": message, "request_id": "r"}}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(error("no"), 401), ["wants a key", "PROXY_API_KEY"]),
        (
            Answer(error("full"), 503, {"Retry-After": "7"}),
            ["full", "7 seconds", "MAX_CONCURRENT_RUNS"],
        ),
        (Answer(error("our own\nfault"), 500), ["500", "our own fault"]),
        (Answer("<html>bad gateway", 502), ["502", "no reason given"]),
        (Answer("", 301, {"Location": "/"}), ["301"]),
        (Answer("<html>log in"), ["two-element array"]),
        (Answer(json.dumps(reply(DATA_URI))[:-20]), ["two-element array"]),
        (Answer(reply(DATA_URI), headers={"Content-Length": "9999"}), ["Incomplete"]),
    ],
    ids=["401", "503", "500", "502", "301", "html", "cut body", "cut"],
)
def test_a_run_that_is_not_answered_is_named_with_its_cure(
    played: Played, check_played: RunCheck, answer: Answer, words: list[str]
) -> None:
    played.answers["/execute"] = answer
    assert_one_line(check_played(), *words)


def test_a_refused_key_is_told_from_a_missing_one(
    played: Played, check_played: RunCheck
) -> None:
    played.answers["/execute"] = Answer(error("no"), 401)
    assert_one_line(
        check_played("--key", "wrong-key"), "refuses this key", "PROXY_API_KEY"
    )


@pytest.mark.parametrize("outcome", ["error", "timeout", "unavailable"])
def test_another_outcome_is_told_in_the_words_of_the_service(
    played: Played, check_played: RunCheck, outcome: str
) -> None:
    played.run_answers(reply(text=REFUSED), outcome)
    checked = check_played()
    assert_one_line(checked, outcome, "E2B refused the service's key.")
    assert "secret_plan" not in checked[2]


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        "text",
        [[]],
        [[{"type": "text", "text": TEXT}]],
        [[{"type": "text", "text": 1}], {"content": []}],
        [[{"type": "words", "text": TEXT}], {"content": []}],
        [[{"type": "text", "text": TEXT}] * 2, {"content": []}],
        [[{"type": "text", "text": TEXT}], {"content": None}],
        [[{"type": "text", "text": TEXT}], {"content": [{"type": "image_url"}]}],
        [
            [{"type": "text", "text": TEXT}],
            {"content": [{"image_url": {"url": DATA_URI}}]},
        ],
        [*reply(DATA_URI), {}],
    ],
    ids=lambda body: json.dumps(body)[:40],
)
def test_a_reply_of_another_shape_is_not_taken_for_one(
    played: Played, check_played: RunCheck, body: Any
) -> None:
    played.run_answers(body)
    assert_one_line(check_played(), "two-element array")


@pytest.mark.parametrize(
    ("picture_urls", "words"),
    [
        ([], ["0 pictures"]),
        ([DATA_URI, DATA_URI], ["2 pictures"]),
        (["data:image/svg+xml;base64,PHN2Zz4="], ["no PNG", "svg"]),
        ([check.DATA_URI + "***"], ["no base64"]),
        ([check.DATA_URI + "R0lGODdh"], ["no PNG", "GIF87a"]),
        (["URL/images/gone.png"], ["404", "IMAGE_URL"]),
        (["URL/images/page.png"], ["no PNG", "<html>"]),
        (["file:///images/page.png"], ["address is"]),
    ],
    ids=["none", "two", "svg", "not base64", "gif", "gone", "page", "file"],
)
def test_a_picture_that_is_none_is_noticed(
    played: Played,
    check_played: RunCheck,
    tmp_path: Path,
    picture_urls: list[str],
    words: list[str],
) -> None:
    played.answers["/images/gone.png"] = Answer(status=404)
    played.answers["/images/page.png"] = Answer("<html>")
    played.run_answers(
        reply(*(url.replace("URL", played.url, 1) for url in picture_urls))
    )
    assert_one_line(check_played(), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_reply_without_what_was_printed_or_without_its_outcome_is_noticed(
    played: Played, check_played: RunCheck
) -> None:
    played.run_answers(reply(DATA_URI, text="**Console Output:**\n```\nhi\n```"))
    assert_one_line(check_played(), "printed", "hi")
    played.run_answers(reply(DATA_URI), outcome="")
    assert_one_line(check_played(), "X-Run-Outcome")


def test_a_picture_that_cannot_be_written_says_where(
    played: Played, check_played: RunCheck
) -> None:
    assert_one_line(
        check_played("--out", "no/such/folder/x.png"), "no/such/folder/x.png", "--out"
    )


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:3001",
        "localhost",
        "ftp://x",
        "http://:1",
        "http://[::1",
        "http://x:port",
    ],
)
def test_an_address_that_is_none_says_what_one_looks_like(
    run_check: RunCheck, url: str
) -> None:
    assert_one_line(run_check("--url", url), repr(url), "http://127.0.0.1:3001")


@pytest.mark.parametrize("key", ["kéy", "two\nlines"])
def test_a_key_that_no_header_can_carry_is_refused_before_anything_is_sent(
    played: Played, check_played: RunCheck, key: str
) -> None:
    assert_one_line(check_played("--key", key), "PROXY_API_KEY")
    assert played.asked == []


@pytest.mark.parametrize(
    ("host", "by_proxy"),
    [
        ("127.0.0.1", False),
        ("[::1]", False),
        ("localhost", False),
        ("e2b.example", True),
    ],
)
def test_only_addresses_of_other_machines_may_go_by_a_proxy(
    monkeypatch: pytest.MonkeyPatch,
    run_check: RunCheck,
    played: Played,
    host: str,
    by_proxy: bool,
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, played.url)
    url = f"http://{host}:9"
    played.answers[f"{url}/health"] = Answer(status=500)
    run_check("--url", url)
    assert bool(played.asked) is by_proxy


def test_nothing_listening_is_said_in_one_line_whatever_the_proxy_variables_say(
    run_check: RunCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:1")
    with socket.socket() as bound_but_deaf:
        bound_but_deaf.bind(("127.0.0.1", 0))
        port = bound_but_deaf.getsockname()[1]
        assert_one_line(
            run_check("--url", f"http://127.0.0.1:{port}"), "nothing answers"
        )


# --- files ----------------------------------------------------------------------------

UPLOADED = {"storage_session_id": "s1", "files": [{"fileId": "f1"}]}
# A body of fewer bytes than its head says.
CUT = Answer(b"enis", headers={"Content-Length": "5"})
RAN = {"session_id": "s2", "stdout": "", "stderr": "", "files": [{"id": "f2"}]}


@pytest.fixture
def with_files(played: Played) -> Played:
    played.answers["/health"] = Answer(HEALTHY | {"code_api": True})
    played.answers["/v1/upload"] = Answer(UPLOADED)
    played.answers["/v1/exec"] = Answer(RAN)
    played.answers["/v1/download/s2/f2"] = Answer(b"enis\n")
    return played


def test_files_are_tried_where_the_code_api_is_served(
    with_files: Played, check_played: RunCheck
) -> None:
    code, out, err = check_played("--key", "k")
    assert (code, err) == (0, "")
    assert check.FILES_WORK in out
    paths = [asked.path for asked in with_files.asked]
    assert paths[2:] == ["/v1/upload", "/v1/exec", "/v1/download/s2/f2"]
    keys = {asked.headers["Authorization"] for asked in with_files.asked}
    assert keys == {"Bearer k"}
    file = json.loads(with_files.asked[3].body)["files"][0]
    assert file == {"name": "in.txt", "id": "f1", "storage_session_id": "s1"}


def test_a_plot_of_the_table_that_is_no_png_is_said(
    with_files: Played, check_played: RunCheck, tmp_path: Path
) -> None:
    """That one comes is shown with a real service, in test_demo.py."""
    checked = check_played("--table-out", "table.png")
    assert_one_line(checked, "/v1/download/s2/f2 is no PNG: it begins with b'enis")
    assert not (tmp_path / "table.png").exists()
    [_, asked] = [each for each in with_files.asked if each.path == "/v1/upload"]
    assert check.TABLE in asked.body


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        ("/v1/upload", Answer({"message": "disk is full"}, 500), "disk is full"),
        (
            "/v1/exec",
            Answer({**RAN, "files": [], "stderr": "E2B failed"}),
            "E2B failed",
        ),
        ("/v1/upload", Answer({}), "/v1/upload answered {}, not with"),
        ("/v1/upload", Answer({**UPLOADED, "files": []}), "not with the file's id"),
        ("/v1/upload", Answer("<html>", 502), "/v1/upload answered 502"),
        ("/v1/upload", Answer("", 302, {"Location": "/health"}), "answered 302"),
        ("/v1/exec", Answer("<html>"), "/v1/exec answered 200"),
        ("/v1/exec", Answer({"files": [{}]}), "not with the file's id"),
        ("/v1/exec", Answer({"message": "no"}), "not with the file's id"),
        ("/v1/exec", Answer(json.dumps(RAN)[:-9]), "/v1/exec answered 200"),
        ("/v1/download/s2/f2", Answer(b"eni"), "not with the file"),
        ("/v1/download/s2/f2", CUT, "could not be asked"),
        ("/v1/download/s2/f2", Answer(b"", 404), "answered 404"),
        ("/v1/download/s2/f2", Answer(b"other"), "not with the file"),
    ],
)
def test_it_says_what_of_files_does_not_work(
    with_files: Played, check_played: RunCheck, path: str, answer: Answer, words: str
) -> None:
    with_files.answers[path] = answer
    assert_one_line(check_played(), words)
