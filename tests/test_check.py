"""What check.py says, of a service that works and of each way in which one does not.

The service itself is asked where it can be; how it fails is played by requests-mock.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import check
import pytest
import requests
import requests_mock
from builders import answer_with, encoded, figure, picture, stdout
from local_e2b import LocalE2B

from conftest import Service

pytestmark = pytest.mark.usefixtures("untraced")

URL = "http://127.0.0.1:3001"
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

    def run(*arguments: str) -> Checked:
        code = check.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def answers() -> Iterator[requests_mock.Mocker]:
    """A service at URL that works, for one answer of it to be replaced."""
    with requests_mock.Mocker() as mocker:
        mocker.get(f"{URL}/health", json=HEALTHY)
        answer_run(mocker, reply(DATA_URI))
        yield mocker


def reply(*picture_urls: str, text: str = TEXT) -> list[Any]:
    pictures = [
        {"type": "image_url", "image_url": {"url": url}} for url in picture_urls
    ]
    return [[{"type": "text", "text": text}], {"content": pictures}]


def answer_run(
    mocker: requests_mock.Mocker, body: Any, outcome: str = "ok", **more: Any
) -> None:
    headers = {"X-Run-Outcome": outcome} if outcome else {}
    mocker.post(f"{URL}/execute", json=body, headers=headers, **more)


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
    service: Service,
    run_check: RunCheck,
    tmp_path: Path,
) -> None:
    code, out, err = run_check("--url", service.url)
    assert (code, err) == (0, "")
    assert check.PRINTED in out
    assert (tmp_path / "sine.png").read_bytes() == drawn
    scripted_e2b.set_script(
        {"create": {"status": 401, "body": {"code": 401, "message": "no"}}}
    )
    assert_one_line(run_check("--url", service.url), "unavailable", "E2B")


def test_the_service_passes_with_a_key_and_published_pictures(
    drawn: bytes,
    start_service: Callable[..., Service],
    run_check: RunCheck,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    service = start_service(
        {
            "PROXY_API_KEY": "the-key",
            "IMAGE_DIR": str(folder),
            "IMAGE_URL": "/images/e2b",
        }
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


def test_a_service_that_works_leaves_its_text_and_the_picture(
    answers: requests_mock.Mocker, run_check: RunCheck, tmp_path: Path
) -> None:
    code, out, err = run_check()
    assert (code, err) == (0, "")
    assert check.PRINTED in out
    assert str(tmp_path / "sine.png") in out
    assert (tmp_path / "sine.png").read_bytes() == PNG
    health, run = answers.request_history
    assert health.url == f"{URL}/health"
    assert run.json() == {"code": check.CODE}
    assert "Authorization" not in run.headers


@pytest.mark.parametrize("by", ["argument", "variable"])
def test_the_key_goes_to_the_service_as_a_bearer_token(
    answers: requests_mock.Mocker,
    run_check: RunCheck,
    monkeypatch: pytest.MonkeyPatch,
    by: str,
) -> None:
    if by == "variable":
        monkeypatch.setenv("PROXY_API_KEY", "the-key")
    assert run_check(*(["--key", "the-key"] if by == "argument" else []))[0] == 0
    assert answers.request_history[-1].headers["Authorization"] == "Bearer the-key"


def test_the_key_goes_nowhere_else_and_netrc_is_not_asked(
    answers: requests_mock.Mocker,
    run_check: RunCheck,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    picture = answers.get("http://pictures.example/x.png", content=PNG)
    answer_run(answers, reply("http://pictures.example/x.png"))
    assert run_check("--key", "the-key")[0] == 0
    assert "Authorization" not in picture.last_request.headers
    assert run_check()[0] == 0
    assert "Authorization" not in answers.request_history[-1].headers


@pytest.mark.parametrize(
    "picture_url", [f"{URL}/images/abc.png", "/images/abc.png"], ids=["address", "path"]
)
def test_a_published_picture_is_fetched(
    answers: requests_mock.Mocker, run_check: RunCheck, tmp_path: Path, picture_url: str
) -> None:
    answers.get(f"{URL}/images/abc.png", content=PNG)
    answer_run(answers, reply(picture_url))
    assert run_check("--out", "other.png")[0] == 0
    assert (tmp_path / "other.png").read_bytes() == PNG


def test_a_picture_that_librechat_serves_is_named_and_not_fetched(
    answers: requests_mock.Mocker, run_check: RunCheck, tmp_path: Path
) -> None:
    answers.get(f"{URL}/images/e2b/abc.png", status_code=404)
    answer_run(answers, reply("/images/e2b/abc.png"))
    code, out, _ = run_check()
    assert code == 0
    assert "/images/e2b/abc.png" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("health", "words"),
    [
        ({"exc": requests.ConnectionError}, ["nothing answers", "make demo", "--url"]),
        ({"exc": requests.ReadTimeout}, ["no answer", "within 10 s", "log"]),
        ({"exc": requests.TooManyRedirects("lost")}, ["could not be asked", "lost"]),
        (
            {"status_code": 503, "json": {"status": "unhealthy"}},
            ["503", "unhealthy", "log"],
        ),
        ({"json": {"status": "starting"}}, ["200", "'starting'"]),
        ({"text": "<html>hello</html>"}, ["another program", "PORT", "--url"]),
        ({"json": ["healthy"]}, ["another program"]),
        ({"status_code": 404, "json": {}}, ["404", "another program"]),
    ],
    ids=["refused", "hangs", "broken", "503", "starting", "html", "a list", "404"],
)
def test_a_service_that_is_not_healthy_is_asked_for_nothing_more(
    answers: requests_mock.Mocker,
    run_check: RunCheck,
    health: dict[str, Any],
    words: list[str],
) -> None:
    answers.get(f"{URL}/health", **health)
    assert_one_line(run_check(), f"{URL}/health", *words)
    assert answers.call_count == 1


def error(message: str) -> dict[str, Any]:
    return {"error": {"code": "code", "message": message, "request_id": "r"}}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"status_code": 401, "json": error("no")}, ["wants a key", "PROXY_API_KEY"]),
        (
            {
                "status_code": 503,
                "json": error("full"),
                "headers": {"Retry-After": "7"},
            },
            ["full", "7 seconds", "MAX_CONCURRENT_RUNS"],
        ),
        (
            {"status_code": 500, "json": error("our own\nfault")},
            ["500", "our own fault"],
        ),
        ({"status_code": 502, "text": "<html>bad gateway"}, ["502", "no reason given"]),
        ({"status_code": 301, "headers": {"Location": "/"}}, ["301"]),
        ({"exc": requests.ConnectionError}, ["nothing answers", "/execute"]),
        ({"exc": requests.ReadTimeout}, ["no answer", "/execute", "log"]),
    ],
    ids=["401", "503", "500", "502", "301", "refused", "hangs"],
)
def test_a_run_that_is_not_answered_is_named_with_its_cure(
    answers: requests_mock.Mocker,
    run_check: RunCheck,
    answer: dict[str, Any],
    words: list[str],
) -> None:
    answers.post(f"{URL}/execute", **answer)
    assert_one_line(run_check(), *words)


def test_a_refused_key_is_told_from_a_missing_one(
    answers: requests_mock.Mocker, run_check: RunCheck
) -> None:
    answers.post(f"{URL}/execute", status_code=401, json=error("no"))
    assert_one_line(
        run_check("--key", "wrong-key"), "refuses this key", "PROXY_API_KEY"
    )


@pytest.mark.parametrize("outcome", ["error", "timeout", "unavailable"])
def test_another_outcome_is_told_in_the_words_of_the_service(
    answers: requests_mock.Mocker, run_check: RunCheck, outcome: str
) -> None:
    answer_run(answers, reply(text=REFUSED), outcome)
    checked = run_check()
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
    answers: requests_mock.Mocker, run_check: RunCheck, body: Any
) -> None:
    answer_run(answers, body)
    assert_one_line(run_check(), "two-element array")


@pytest.mark.parametrize(
    ("picture_urls", "words"),
    [
        ([], ["0 pictures"]),
        ([DATA_URI, DATA_URI], ["2 pictures"]),
        (["data:image/svg+xml;base64,PHN2Zz4="], ["no PNG", "svg"]),
        ([check.DATA_URI + "***"], ["no base64"]),
        ([check.DATA_URI + "R0lGODdh"], ["no PNG", "GIF87a"]),
        ([f"{URL}/images/gone.png"], ["404", "IMAGE_URL"]),
        ([f"{URL}/images/page.png"], ["no PNG", "<html>"]),
    ],
    ids=["none", "two", "svg", "not base64", "gif", "gone", "page"],
)
def test_a_picture_that_is_none_is_noticed(
    answers: requests_mock.Mocker,
    run_check: RunCheck,
    tmp_path: Path,
    picture_urls: list[str],
    words: list[str],
) -> None:
    answers.get(f"{URL}/images/gone.png", status_code=404)
    answers.get(f"{URL}/images/page.png", text="<html>")
    answer_run(answers, reply(*picture_urls))
    assert_one_line(run_check(), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_reply_without_what_was_printed_or_without_its_outcome_is_noticed(
    answers: requests_mock.Mocker, run_check: RunCheck
) -> None:
    answer_run(answers, reply(DATA_URI, text="**Console Output:**\n```\nhi\n```"))
    assert_one_line(run_check(), "printed", "hi")
    answer_run(answers, reply(DATA_URI), outcome="")
    assert_one_line(run_check(), "X-Run-Outcome")


def test_a_picture_that_cannot_be_written_says_where(
    answers: requests_mock.Mocker, run_check: RunCheck
) -> None:
    assert_one_line(
        run_check("--out", "no/such/folder/x.png"), "no/such/folder/x.png", "--out"
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
    answers: requests_mock.Mocker, run_check: RunCheck, key: str
) -> None:
    assert_one_line(run_check("--key", key), "PROXY_API_KEY")
    assert answers.call_count == 0


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
    host: str, by_proxy: bool
) -> None:
    with check._session(f"http://{host}:3001", None) as session:
        assert session.trust_env is by_proxy


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
