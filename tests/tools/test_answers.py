"""Whether our own tools would notice an answer that is not the one they are there for.

The bench and the soak are trusted for what they print. requests-mock gives each of
their questions the answers of a service that is broken, or of whatever stands between.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import attacks
import launch
import pytest
from answers import (
    Client,
    NoAnswer,
    RequestsClient,
    TimedClient,
    WrongAnswer,
    check_file,
    check_script_taken,
    health_of,
    state_of,
)
from bench import one_more_run, printing
from bench_files import (
    check_brought_out,
    check_taken_in,
    download,
    echo,
    exec_script,
    upload,
)
from bench_load import Generator, timed_run
from builders import encoded, error, figure, padded_png, picture, stdout
from local_e2b import LocalE2B
from processes import BenchError, answered
from requests_mock import Mocker
from soak import PLAIN, Caller, Load
from tool_answers import (
    BASE,
    BETWEEN,
    FILE,
    GIF_URI,
    HTML,
    PNG_URI,
    PORT,
    Fields,
    bad_request,
    exec_reply,
    play,
    refusal,
    run_reply,
    tool_result,
    uploaded,
)

pytestmark = pytest.mark.usefixtures("untraced")

REF = {"id": "f1", "storage_session_id": "s1", "name": "a"}
EXEC = "POST /v1/exec"
OBJECT = "GET /v1/sessions/s2/objects/f2"


@pytest.fixture
def client() -> Iterator[RequestsClient]:
    client = RequestsClient(PORT, timeout_s=5)
    yield client
    client.close()


# --- what is asked, and the good answer -----------------------------------------------

JOB = printing(0)
CODE = JOB["code"]
DRAWING = {"code": "plt.show()", "pictures": 1, "picture_bytes": 1000}
PRINT = PLAIN[0][1]
SOAK_CODE = answered(**PRINT.answer).replace("{n}", "7")
HEALTHY = {"status": "healthy", "runs_in_flight": 0, "warm_ready": 1}
STATE = {"alive": 0, "sandbox_seconds": 1.5, "requests": []}
BROUGHT = exec_reply(stdout="done\n", files=[FILE])


def bring_out(client: Client) -> None:
    check_brought_out(client, exec_script(client, "make b"), 7)


@dataclass(frozen=True)
class Question:
    """One of the questions of the tools, whose `answers` satisfy it."""

    ask: Callable[[Client], Any]
    answers: dict[str, Fields]  # by method and path

    def changed(self, asked: str, answer: Fields) -> dict[str, Fields]:
        return {**self.answers, asked: answer}


def soaking(ask: Callable[[Caller], Any]) -> Callable[[Client], Any]:
    """What a caller of the soak asks while it counts for nobody else."""
    return lambda client: ask(Caller(Load(PORT, 0, 0, 0), client))


def run(job: Fields) -> Callable[[Client], Any]:
    return lambda client: timed_run(client, job, {})


QUESTIONS = {
    "health": Question(
        lambda client: health_of(client.ask("GET", "/health")),
        {"GET /health": {"json": HEALTHY}},
    ),
    "state": Question(
        lambda client: state_of(client.ask("GET", "/_state")),
        {"GET /_state": {"json": STATE}},
    ),
    "script": Question(
        lambda client: check_script_taken(client.ask("PUT", "/_script", b"{}")),
        {"PUT /_script": {"status_code": 204}},
    ),
    "run": Question(run(JOB), {"POST /execute": run_reply(CODE)}),
    "drawing": Question(
        run(DRAWING), {"POST /execute": run_reply(DRAWING["code"], urls=(PNG_URI,))}
    ),
    "warm run": Question(
        run({**JOB, "warm": True}),
        {"GET /health": {"json": HEALTHY}, "POST /execute": run_reply(CODE)},
    ),
    "one more run": Question(one_more_run, {"POST /execute": refusal()}),
    "echo": Question(echo, {EXEC: exec_reply(stdout="hi\n")}),
    "upload": Question(
        lambda client: upload(client, b"data"), {"POST /v1/upload": uploaded()}
    ),
    "download": Question(
        lambda client: check_file(download(client, REF), b"data"),
        {"GET /v1/download/s1/f1": {"content": b"data"}},
    ),
    "file in": Question(
        lambda client: check_taken_in(exec_script(client, "wc", [REF]), b"data"),
        {EXEC: exec_reply(stdout="4\n")},
    ),
    "file out": Question(bring_out, {EXEC: BROUGHT, OBJECT: {"json": {"size": 7}}}),
    "soak's run": Question(
        soaking(lambda caller: caller.run(PRINT, 7, over_mcp=False)),
        {"POST /execute": run_reply(SOAK_CODE, says="number 7")},
    ),
    "soak's run over MCP": Question(
        soaking(lambda caller: caller.run(PRINT, 7, over_mcp=True)),
        {"POST /mcp": tool_result()},
    ),
    "soak's exec": Question(
        soaking(lambda caller: caller.exec(7)),
        {
            "POST /v1/upload": uploaded(),
            EXEC: exec_reply(stdout="number 7\n", files=[FILE]),
            "GET /v1/download/s2/f2": {"content": b"7"},
        },
    ),
    "soak's bad request": Question(
        soaking(lambda caller: caller.refused("POST", "/execute", {}, "{}", 400)),
        {"POST /execute": bad_request()},
    ),
}
EACH_ANSWER = [
    pytest.param(question, asked, id=f"{name}: {asked}")
    for name, question in QUESTIONS.items()
    for asked in question.answers
]


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_right_answer_is_taken(
    name: str, client: Client, requests_mock: Mocker
) -> None:
    play(requests_mock, QUESTIONS[name].answers)
    QUESTIONS[name].ask(client)
    asked = {f"{r.method} {r.path}" for r in requests_mock.request_history}
    assert asked == set(QUESTIONS[name].answers)


# --- what comes of whatever stands in between -----------------------------------------


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize(("question", "asked"), EACH_ANSWER)
def test_what_something_in_between_answers_is_never_taken(
    question: Question, asked: str, between: str, client: Client, requests_mock: Mocker
) -> None:
    # A client that follows the redirect gets an answer that would do.
    good = question.answers[asked]
    requests_mock.get(f"{BASE}/elsewhere", **good)
    answer = BETWEEN[between](good)
    play(requests_mock, question.changed(asked, answer))
    with pytest.raises(WrongAnswer) as raised:
        question.ask(client)
    method, path = asked.split()
    assert f"{method} {path}" in str(raised.value)


# --- what a broken service answers ----------------------------------------------------

OTHER_CODE = run_reply("print('another run')")
NOT_PRINTED = run_reply(CODE, says="o")
PRINTED_IN_THE_CODE = run_reply(f"{CODE}\nok\n", says="")
NOT_DRAWN = run_reply(CODE)
NOT_DRAWN["json"][1]["content"] = [{"type": "text", "text": "a picture"}]
TWO_TEXTS = tool_result()
TWO_TEXTS["json"]["result"]["content"] *= 2
DRAWN = DRAWING["code"]
RUN, OVER_MCP, BAD = "soak's run", "soak's run over MCP", "soak's bad request"
SMALL_URI = "data:image/png;base64," + encoded(padded_png(999))


@pytest.mark.parametrize(
    ("name", "asked", "answer", "words"),
    [
        ("health", "GET /health", {"json": {**HEALTHY, "status": "ill"}}, "health"),
        ("health", "GET /health", {"json": {"status": "healthy"}}, "health"),
        ("state", "GET /_state", {"json": {**STATE, "alive": None}}, "stand-in"),
        ("script", "PUT /_script", {"status_code": 400}, "400"),
        ("run", "POST /execute", NOT_PRINTED, "prints"),
        ("run", "POST /execute", run_reply(CODE, says="not ok"), "prints"),
        ("run", "POST /execute", PRINTED_IN_THE_CODE, "prints"),
        ("run", "POST /execute", OTHER_CODE, "this code"),
        ("run", "POST /execute", run_reply(CODE, outcome="error"), "but error"),
        ("run", "POST /execute", run_reply(CODE, outcome=""), "X-Run-Outcome"),
        ("run", "POST /execute", run_reply(CODE, urls=(PNG_URI,)), "0 pictures but 1"),
        ("run", "POST /execute", refusal(), "run's reply"),
        ("run", "POST /execute", NOT_DRAWN, "with pictures"),
        ("drawing", "POST /execute", run_reply(DRAWN), "1 pictures but 0"),
        ("drawing", "POST /execute", run_reply(DRAWN, urls=(GIF_URI,)), "kind"),
        ("drawing", "POST /execute", run_reply(DRAWN, urls=("/a.png",)), "data URI"),
        ("drawing", "POST /execute", run_reply(DRAWN, urls=(PNG_URI[:-1],)), "base64"),
        ("drawing", "POST /execute", run_reply(DRAWN, urls=(SMALL_URI,)), "999"),
        ("one more run", "POST /execute", refusal("E2B is full."), "each slot"),
        ("one more run", "POST /execute", refusal(headers={}), "each slot"),
        ("one more run", "POST /execute", refusal(status_code=500), "each slot"),
        ("one more run", "POST /execute", NOT_PRINTED, "prints"),
        ("echo", EXEC, exec_reply(stdout="ho\n"), "prints"),
        ("echo", EXEC, exec_reply(stdout="hi"), "prints"),
        ("echo", EXEC, exec_reply(stdout="hi\n", stderr="E2B failed\n"), "stderr"),
        ("echo", EXEC, exec_reply(stdout="hi\n", files=[FILE]), "0 files but 1"),
        ("upload", "POST /v1/upload", uploaded(files=[]), "uploaded file"),
        ("upload", "POST /v1/upload", uploaded(message="error"), "uploaded file"),
        ("download", "GET /v1/download/s1/f1", {"content": b"date"}, "4 bytes"),
        ("download", "GET /v1/download/s1/f1", {"content": b"data!"}, "but 5"),
        ("file in", EXEC, exec_reply(stdout="3\n"), "prints"),
        ("file out", EXEC, exec_reply(stdout="done\n"), "1 files but 0"),
        (
            "file out",
            EXEC,
            exec_reply(stdout="done\n", files=[{"id": "f2"}]),
            "have an id",
        ),
        (
            "file out",
            EXEC,
            exec_reply(stdout="done\n", files=[{**FILE, "storage_session_id": "s9"}]),
            "its own session",
        ),
        ("file out", OBJECT, {"json": {"size": 6}}, "7 bytes"),
        (RUN, "POST /execute", run_reply(SOAK_CODE, "number 8"), "what print brings"),
        (RUN, "POST /execute", run_reply(SOAK_CODE, "number 70"), "what print brings"),
        (RUN, "POST /execute", run_reply(SOAK_CODE, ""), "what print brings"),
        (RUN, "POST /execute", run_reply(CODE, "number 7"), "this code"),
        (
            RUN,
            "POST /execute",
            run_reply(SOAK_CODE, "number 7", (PNG_URI,)),
            "what print brings",
        ),
        (
            RUN,
            "POST /execute",
            run_reply(SOAK_CODE, "number 7", outcome="error"),
            "ok and what print brings",
        ),
        (
            RUN,
            "POST /execute",
            run_reply(SOAK_CODE, "number 7", outcome="unavailable"),
            "ok and what print brings",
        ),
        (OVER_MCP, "POST /mcp", tool_result("number 8"), "what print brings"),
        (OVER_MCP, "POST /mcp", tool_result(number=8), "result of message 7"),
        (OVER_MCP, "POST /mcp", tool_result(drawn=1), "what print brings"),
        (OVER_MCP, "POST /mcp", tool_result("no idea", failed=True), "what print"),
        (OVER_MCP, "POST /mcp", bad_request(), "tool's result"),
        (OVER_MCP, "POST /mcp", TWO_TEXTS, "images after the text"),
        ("soak's exec", "POST /v1/upload", uploaded(files=[]), "uploaded file"),
        ("soak's exec", EXEC, exec_reply(stdout="number 8\n", files=[FILE]), "prints"),
        ("soak's exec", EXEC, exec_reply(stdout="number 7\n"), "1 files but 0"),
        ("soak's exec", EXEC, exec_reply(stderr="Killed\n"), "empty stderr"),
        ("soak's exec", EXEC, refusal(status_code=429), "an exec, or a refusal"),
        ("soak's exec", "GET /v1/download/s2/f2", {"content": b"8"}, "1 bytes"),
        (BAD, "POST /execute", bad_request(status_code=500), "a 400"),
        (BAD, "POST /execute", bad_request(headers={}), "service's own"),
        (BAD, "POST /execute", run_reply("{}"), "service's own"),
    ],
)
def test_a_wrong_value_is_no_figure(
    name: str,
    asked: str,
    answer: Fields,
    words: str,
    client: Client,
    requests_mock: Mocker,
) -> None:
    question = QUESTIONS[name]
    play(requests_mock, question.changed(asked, answer))
    with pytest.raises(WrongAnswer, match=words):
        question.ask(client)


def test_a_run_that_is_not_refused_is_told_from_one_that_is(
    client: Client, requests_mock: Mocker
) -> None:
    requests_mock.post(f"{BASE}/execute", [refusal(), run_reply(CODE)])
    assert [one_more_run(client)[0], one_more_run(client)[0]] == [True, False]


# --- both clients, over real sockets --------------------------------------------------


@contextmanager
def answers_with(
    *pieces: bytes, pause_s: float = 0, stays: bool = False
) -> Iterator[int]:
    """The port of a server that sends these pieces to whoever asks, then closes.

    With `stays` it sends them and then nothing, without closing.
    """
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                connection, _ = server.accept()
                if over.is_set():
                    connection.close()
                    return
                with connection:
                    connection.recv(65_536)
                    for piece in pieces:
                        connection.sendall(piece)
                        over.wait(pause_s)
                    if stays:
                        over.wait()

        thread = threading.Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        try:
            yield port
        finally:
            over.set()
            socket.create_connection(("127.0.0.1", port)).close()
            thread.join()


def response(body: bytes, first_line: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {first_line}", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


WELL = response(json.dumps(HEALTHY).encode())
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BOTH = pytest.mark.parametrize("client_type", [RequestsClient, TimedClient])
ClientType = type[RequestsClient] | type[TimedClient]


@BOTH
def test_a_client_brings_the_whole_answer(client_type: ClientType) -> None:
    with answers_with(WELL[:60], WELL[60:]) as port:
        client = client_type(port, timeout_s=10)
        answer = client.ask("GET", "/health")
        client.close()
    assert (answer.status, answer.asked) == (200, "GET /health")
    assert answer.headers["content-length"] == str(len(answer.body))
    assert health_of(answer) == HEALTHY


@BOTH
@pytest.mark.parametrize(
    "cut",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        WELL[:-1],
        CHUNKED + b"5\r\nhel",
        CHUNKED + b"5\r\nhello\r\n",
    ],
    ids=["nothing", "no HTTP", "a byte short", "chunk", "chunks"],
)
def test_a_reply_that_is_cut_is_no_answer(client_type: ClientType, cut: bytes) -> None:
    with answers_with(cut) as port:
        client = client_type(port, timeout_s=10)
        with pytest.raises(NoAnswer, match="GET /health"):
            client.ask("GET", "/health")
        client.close()


@BOTH
@pytest.mark.parametrize("length", [12, 16, 19, 40])
def test_a_reply_that_is_cut_in_its_head_says_nothing(
    client_type: ClientType, length: int
) -> None:
    """http.client, on which both rest, takes the end of the connection for its end."""
    with answers_with(WELL[:length]) as port:
        client = client_type(port, timeout_s=10)
        with pytest.raises(WrongAnswer, match="GET /health"):
            health_of(client.ask("GET", "/health"))
        client.close()


@BOTH
@pytest.mark.parametrize("sent", [b"", WELL[:-1]], ids=["nothing", "all but a byte"])
def test_nothing_within_the_limit_is_no_answer(
    client_type: ClientType, sent: bytes
) -> None:
    with answers_with(sent, stays=True) as port:
        client = client_type(port, timeout_s=0.2)
        with pytest.raises(NoAnswer, match="GET /health"):
            client.ask("GET", "/health")
        client.close()


@BOTH
def test_the_limit_is_for_the_whole_answer(client_type: ClientType) -> None:
    """Each piece comes in time, all of them do not."""
    with answers_with(WELL[:-2], WELL[-2:-1], WELL[-1:], pause_s=0.6) as port:
        client = client_type(port, timeout_s=1)
        with pytest.raises(NoAnswer, match="more than 1 s"):
            client.ask("GET", "/health")
        client.close()


@BOTH
def test_nobody_listening_is_no_answer(client_type: ClientType) -> None:
    client = client_type(launch.free_port(), timeout_s=10)
    with pytest.raises(NoAnswer, match="GET /health"):
        client.ask("GET", "/health")


@BOTH
def test_a_redirect_is_not_followed(client_type: ClientType) -> None:
    with answers_with(WELL) as good:
        location = f"Location: http://127.0.0.1:{good}/health"
        with answers_with(response(b"", "302 Found", location)) as port:
            client = client_type(port, timeout_s=10)
            answer = client.ask("GET", "/health")
            client.close()
    assert answer.status == 302
    with pytest.raises(WrongAnswer):
        health_of(answer)


# --- from the answer to the tool's verdict --------------------------------------------


@pytest.mark.parametrize(
    "job",
    [
        {"do": "service", "callers": 1, "calls": 1, **JOB},
        {"do": "service", "callers": 1, "calls": 1, "warm": True, **JOB},
        {"do": "probe", "for_s": 0.05},
    ],
    ids=["run", "warm run", "probe"],
)
@pytest.mark.parametrize(
    "answer",
    [response(HTML.encode()), response(HTML.encode(), "502 Bad Gateway"), WELL[:-1]],
    ids=["HTML", "502", "cut"],
)
def test_a_process_that_makes_load_tells_of_a_wrong_answer(
    job: Fields, answer: bytes
) -> None:
    with (
        answers_with(answer) as port,
        Generator(launch.clean_environ()) as load,
        pytest.raises(BenchError, match="calls failed"),
    ):
        load.ask(**job, port=port)


@pytest.mark.parametrize(
    "answer",
    [response(HTML.encode()), response(HTML.encode(), "502 Bad Gateway"), WELL[:-1]],
    ids=["HTML", "502", "cut"],
)
def test_a_health_beside_an_attack_is_the_service_s_own(answer: bytes) -> None:
    with answers_with(answer) as port, pytest.raises(WrongAnswer, match="GET /health"):
        attacks.health_s(port, for_s=0)
    with answers_with(WELL) as port:
        assert len(attacks.health_s(port, for_s=0)) == 1


@pytest.mark.parametrize("do", ["bare", "alone"])
@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"events": [stdout("no\n")]}, "printed 'no"),
        ({"events": [stdout("ok\n"), error("ValueError", "no")]}, "ValueError"),
        ({"events": [stdout("ok\n"), figure(picture())]}, "1 pictures"),
    ],
    ids=["value", "error", "picture"],
)
def test_the_bare_sdk_is_held_to_the_same(
    do: str, run: Fields, words: str, scripted_e2b: LocalE2B
) -> None:
    environ = launch.clean_environ(scripted_e2b.url)
    with Generator(environ) as load:
        assert load.ask(do, callers=1, calls=1, **JOB)["durations_s"]
        scripted_e2b.set_script({"run": run})
        with pytest.raises(BenchError, match=words):
            load.ask(do, callers=1, calls=1, **JOB)


@pytest.mark.parametrize(
    ("answer", "is_healthy"),
    [
        (WELL, True),
        (response(HTML.encode()), False),
        (response(b'{"status": "starting"}'), False),
        (response(b'["healthy"]'), False),
        (response(json.dumps(HEALTHY).encode(), "502 Bad Gateway"), False),
        (response(b"", "302 Found", "Location: /"), False),
        (WELL[:-1], False),
        (b"", False),
    ],
)
def test_a_service_is_up_when_it_says_so_and_nobody_else(
    answer: bytes, is_healthy: bool
) -> None:
    with answers_with(answer) as port:
        assert launch.is_healthy(port) is is_healthy
