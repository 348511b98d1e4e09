"""The process as it is shipped: gunicorn with
gunicorn.conf.py, its signals, sockets and log.

Clients that take long are in test_slow_clients.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import requests
from builders import answer_with, is_running, stdout
from local_e2b import LocalE2B
from pools import wait_until
from raw_http import CHUNKED, SMUGGLED, answer_to, connected, get, one_answer, post

from conftest import E2B_KEY, OK_RUN, ROOT, Service, e2b_at, free_port, text_of

pytestmark = pytest.mark.usefixtures("runs_print_ok")

PROXY_KEY = "proxy-key-0123456789-abcdef"
Start = Callable[..., Service]


# --- start -----------------------------------------------------


def test_it_boots_on_the_port_of_the_environment_on_loopback(
    shared_service: Service,
) -> None:
    assert (
        requests.get(f"{shared_service.url}/health", timeout=30).json()["status"]
        == "healthy"
    )
    (connection,) = [
        connection
        for connection in psutil.Process(shared_service.process.pid).net_connections(
            "tcp"
        )
        if connection.status == psutil.CONN_LISTEN
    ]
    assert (connection.laddr.ip, connection.laddr.port) == (
        "127.0.0.1",
        shared_service.port,
    )


# Root may listen at any port, unless it gives up that right.
WITHOUT_RIGHTS = (
    ["setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service"]
    if os.geteuid() == 0
    else []
)


def ended(
    environ: dict[str, str],
    *options: str,
    before: Sequence[str] = (),
    app: str = "proxy:app",
) -> tuple[int, str]:
    """gunicorn that does not come up: its exit code and all that it said."""
    clean = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith("E2B") and "proxy" not in k.lower()
    }
    done = subprocess.run(
        [*before, sys.executable, "-m", "gunicorn", *options, app],
        cwd=ROOT,
        env=clean | {"PORT": str(free_port())} | environ,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout + done.stderr


def test_bad_settings_are_all_named_in_one_line_and_it_exits_at_once() -> None:
    environ = {
        "RUN_TIMEOUT_S": "soon",
        "MAX_IMAGES": "-1",
        "LOG_LEVEL": "loud",
        "PORT": "0",
    }
    code, said = ended(environ)
    assert code == os.EX_CONFIG
    (line,) = said.strip().splitlines()
    for name in [*environ, "E2B_API_KEY"]:
        assert name in line
    assert "'soon'" in line


def test_a_missing_key_is_named_and_a_bad_one_is_not_shown() -> None:
    code, said = ended({})
    assert code == os.EX_CONFIG
    assert len(said.strip().splitlines()) == 1
    assert "E2B_API_KEY" in said
    code, said = ended({"E2B_API_KEY": "top secret"})
    assert code != 0
    assert "E2B_API_KEY" in said
    assert "secret" not in said


def test_bad_settings_end_it_at_once_without_our_configuration_as_well() -> None:
    bind = f"--bind=127.0.0.1:{free_port()}"
    code, said = ended({"MAX_IMAGES": "many"}, "-c", os.devnull, bind)
    assert code != 0
    assert said.count("Booting worker") <= 1  # no boot loop
    assert "MAX_IMAGES must be" in said


def test_a_worker_that_cannot_load_the_service_says_why_and_nothing_else() -> None:
    _, said = ended({"E2B_API_KEY": E2B_KEY}, app="proxy:nothing")
    assert "Failed to find attribute 'nothing' in 'proxy'" in said
    assert "Exception during worker exit" not in said


@pytest.mark.parametrize("key", ["", PROXY_KEY])
def test_a_line_warns_when_anyone_can_reach_it_and_no_key_guards_it(
    start_service: Start, key: str
) -> None:
    service = start_service(HOST="0.0.0.0", PROXY_API_KEY=key)
    assert requests.get(f"{service.url}/health", timeout=30).ok
    warnings = [line for line in service.lines if '"warning"' in line]
    assert len(warnings) == (0 if key else 1)
    assert key or "PROXY_API_KEY" in warnings[0]


def only_line(said: str) -> str:
    """What was said beside gunicorn's line that it starts."""
    lines = [line for line in said.splitlines() if "Starting gunicorn" not in line]
    assert len(lines) == 1, said
    return lines[0]


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "Cannot assign requested address"),
        ("[2001:db8::1]", "Cannot assign requested address|not supported"),
        ("no-such-name.invalid", "not known|resolution"),
        ("127.0.0.1", "Address already in use"),
    ],
)
def test_an_address_that_cannot_be_had_ends_it_at_once_in_one_line(
    shared_service: Service, host: str, reason: str
) -> None:
    """Named with the reason; gunicorn would try for 5 s, with a line for each try."""
    settings = {"E2B_API_KEY": E2B_KEY, "HOST": host, "PORT": str(shared_service.port)}
    code, said = ended(settings)
    assert code == 1
    line = only_line(said)
    assert host.strip("[]") in line
    assert str(shared_service.port) in line
    assert re.search(reason, line)


def test_a_port_that_needs_rights_ends_it_at_once_in_one_line() -> None:
    settings = {"E2B_API_KEY": E2B_KEY, "PORT": "80"}
    code, said = ended(settings, before=WITHOUT_RIGHTS)
    assert code == 1
    assert "80: Permission denied" in only_line(said)


def test_settings_are_read_again_at_sighup_while_it_listens(
    start_service: Start,
) -> None:
    service = start_service()
    (worker,) = psutil.Process(service.process.pid).children()
    at = len(service.lines)
    service.process.send_signal(signal.SIGHUP)
    service.wait_for_log("Booting worker", after=at)
    worker.wait(20)
    assert text_of(service.execute())


def test_gunicorns_own_worker_serves_as_well(scripted_e2b: LocalE2B) -> None:
    command = ("-k", "gthread", "proxy:app")
    service = Service(e2b_at(scripted_e2b.url), command)
    try:
        service.wait_until_ready()
        assert "Using worker: gthread" in service.wait_for_log("Using worker")
        assert text_of(service.execute())
    finally:
        service.stop()


# --- signals -----------------------------------------------------


def test_sigterm_in_the_middle_of_a_run_the_run_finishes_and_is_answered(
    start_service: Start, scripted_e2b: LocalE2B
) -> None:
    scripted_e2b.set_script({"run": {"run_s": 1.5, **OK_RUN}})
    service = start_service()
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(service.execute)
        scripted_e2b.wait_for(
            lambda state: any(r["kind"] == "run" for r in state["requests"])
        )
        service.process.send_signal(signal.SIGTERM)
        response = running.result()
    assert "ok\n" in text_of(response)
    assert response.headers["X-Run-Outcome"] == "ok"
    assert service.process.wait(10) == 0
    state = scripted_e2b.state()
    assert (state["created"], state["killed"], state["alive"]) == (1, 1, 0)


def test_who_has_connected_before_sigterm_is_answered(start_service: Start) -> None:
    service = start_service()
    (worker,) = psutil.Process(service.process.pid).children()
    with ExitStack() as clients:
        worker.suspend()
        # A thread that still runs could take the next signal first.
        wait_until(lambda: is_stopped(worker.pid))
        waiting = [clients.enter_context(connected(service)) for _ in range(20)]
        for client in waiting:
            client.sendall(get())
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: has_pending(worker.pid, signal.SIGTERM))
        worker.resume()
        for client in waiting:
            assert one_answer(client).startswith(b"HTTP/1.1 200 ")
    assert service.process.wait(20) == 0


def is_stopped(pid: int) -> bool:
    """Whether each thread of a process has been stopped."""
    tasks = Path(f"/proc/{pid}/task").glob("*/status")
    return all("\nState:\tT" in task.read_text() for task in tasks)


def has_pending(pid: int, signal_number: int) -> bool:
    """Whether a process has been sent a signal that it has not taken yet."""
    status = Path(f"/proc/{pid}/status").read_text()
    (pending,) = re.findall(r"^ShdPnd:\s*(\w+)", status, re.MULTILINE)
    return bool(int(pending, 16) >> (signal_number - 1) & 1)


def test_sigterm_is_not_held_up_by_a_connection_that_says_nothing(
    start_service: Start, scripted_e2b: LocalE2B
) -> None:
    service = start_service()
    service.execute()
    with connected(service), connected(service) as other:
        other.sendall(get())
        one_answer(other)  # kept alive; the first was accepted before it
        started = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(20) == 0
        assert time.monotonic() - started < 15


def test_a_worker_that_dies_is_replaced_and_the_service_goes_on(
    start_service: Start, scripted_e2b: LocalE2B
) -> None:
    service = start_service()
    service.execute()
    (worker,) = psutil.Process(service.process.pid).children()
    worker.kill()
    worker.wait(5)
    assert text_of(service.execute())
    assert [child.pid for child in psutil.Process(service.process.pid).children()] != [
        worker.pid
    ]


# --- hostile bytes -----------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GARBAGE\r\n\r\n", id="garbage"),
        pytest.param(
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40), id="TLS"
        ),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"GET /health\r\n\r\n", id="HTTP/0.9"),
        pytest.param(post(b'{"code": "1', length=100), id="short body"),
        pytest.param(
            post(b'{"code": "1"}', length=100),
            id="short body that could be a whole one",
        ),
        pytest.param(post(b"", length=-1), id="negative length"),
        pytest.param(post(b'{"code": "1"}', "Content-Length: 5"), id="two lengths"),
        pytest.param(
            (CHUNKED + "Content-Length: +5\r\n\r\nabcde").encode(),
            id="a length with a sign",
        ),
        pytest.param(
            (
                CHUNKED + "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"
            ).encode(),
            id="bad chunk size",
        ),
        pytest.param(
            (
                CHUNKED + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX\r\n0\r\n\r\n"
            ).encode(),
            id="bad chunk end",
        ),
        pytest.param(
            (CHUNKED + "Transfer-Encoding: chunked\r\n\r\n5\r\n{}").encode(),
            id="chunk cut short",
        ),
        pytest.param(
            (
                CHUNKED + "Transfer-Encoding: chunked\r\n\r\n" + "f" * 40 + "\r\n{}"
            ).encode(),
            id="endless chunk",
        ),
        pytest.param(
            (
                CHUNKED
                + f"Content-Length: {len(SMUGGLED) + 5}\r\n"
                + "Transfer-Encoding: chunked\r\n\r\n"
                + "0\r\n\r\n"
                + SMUGGLED
            ).encode(),
            id="smuggling by length and chunks",
        ),
        pytest.param(
            (
                CHUNKED + "Transfer-Encoding: identity, chunked, identity\r\n\r\n"
            ).encode(),
            id="smuggling by codings",
        ),
        pytest.param(
            (
                CHUNKED + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED
            ).encode(),
            id="smuggling by a space before the colon",
        ),
        pytest.param(get("/health", "X-A: a\r\n b"), id="folded header"),
        pytest.param(get("/health", "X-A: a\0b"), id="NUL in a header"),
        pytest.param(get("/health", "X-A: " + "a" * 70_000), id="huge header"),
        pytest.param(get("/health", *["X-A: b"] * 1000), id="a thousand headers"),
        pytest.param(get("/" + "a" * 70_000), id="huge path"),
        pytest.param(b"BREW /execute HTTP/1.1\r\nHost: localhost\r\n\r\n", id="BREW"),
        pytest.param(
            b"DELETE /execute HTTP/1.1\r\nHost: localhost\r\n\r\n", id="DELETE"
        ),
        pytest.param(b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n", id="TRACE"),
        pytest.param(
            b"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test\r\n\r\n", id="CONNECT"
        ),
        pytest.param(
            b"POST /health HTTP/1.1\r\nHost: localhost\r\n\r\n", id="POST /health"
        ),
        pytest.param(get("/../../etc/passwd"), id="a path that climbs"),
        pytest.param(get("/images/..%2f..%2fetc%2fpasswd"), id="a name that climbs"),
        pytest.param(get("/%ff%00"), id="a path of any bytes"),
        pytest.param(
            post(b'{"code": "1"}', "Expect: 200-ok"),
            id="an expectation that is unknown",
        ),
    ],
)
def test_hostile_bytes_are_the_callers_mistake_never_ours_and_run_nothing(
    shared_service: Service, e2b: LocalE2B, sent: bytes
) -> None:
    created, at = e2b.state()["created"], len(shared_service.lines)
    answer = answer_to(shared_service, sent)
    statuses = re.findall(rb"HTTP/1\.[01] (\d\d\d) ", answer)
    assert not statuses or re.fullmatch(b"4..", statuses[0]), answer
    assert all(status.startswith(b"4") for status in statuses), answer
    assert len(statuses) <= 1
    assert requests.get(f"{shared_service.url}/health", timeout=30).ok
    assert e2b.state()["created"] <= created + 1 - bool(statuses)
    assert "Traceback" not in "".join(shared_service.lines[at:])


@pytest.mark.parametrize("pieces", [[b"\r\n" + get()], [b"\r\n", get()]])
def test_an_empty_line_before_a_request_is_ignored(
    shared_service: Service, pieces: list[bytes]
) -> None:
    """RFC 9112, 2.2. gunicorn refuses a second one."""
    with connected(shared_service) as connection:
        for piece in [*pieces, *pieces]:
            connection.sendall(piece)
        for _ in range(2):
            assert one_answer(connection).startswith(b"HTTP/1.1 200 ")


def test_requests_sent_at_once_are_answered_in_turn(shared_service: Service) -> None:
    body = b'{"code": "1"}'
    answer = answer_to(
        shared_service, get() + post(body) + get("/nothing") + get("/health")
    )
    statuses = re.findall(rb"HTTP/1\.1 (\d\d\d) ", answer)
    assert statuses == [b"200", b"200", b"404", b"200"]


# --- the log, and secrets -----------------------------------------------------


def test_a_request_is_one_line_of_the_log_with_what_operators_ask_for_and_no_content(
    start_service: Start, scripted_e2b: LocalE2B
) -> None:
    answer_with(scripted_e2b, stdout("words-of-output\n"), pngs=1, png_bytes=2000)
    service = start_service(PROXY_API_KEY=PROXY_KEY, LOG_LEVEL="debug")
    headers = {
        "Authorization": f"Bearer {PROXY_KEY}",
        "X-Request-Id": "id-of-the-caller.1",
    }
    code = "print('words-of-code')"
    url = f"{service.url}/execute"
    response = requests.post(url, json={"code": code}, headers=headers, timeout=20)
    assert "words-of-output" in text_of(response)
    assert response.headers["X-Request-Id"] == "id-of-the-caller.1"
    line = json.loads(service.wait_for_log("id-of-the-caller.1"))
    assert {
        "time",
        "level",
        "message",
        "took_ms",
        "queue_ms",
        "create_ms",
        "run_ms",
    } <= set(line)
    assert (line["method"], line["path"], line["status"]) == ("POST", "/execute", 200)
    assert (line["outcome"], line["code_chars"], line["pictures"]) == (
        "ok",
        len(code),
        1,
    )
    assert re.fullmatch("[0-9a-f]{16,64}", line["code_sha256"])
    assert line["picture_bytes"] == 2000
    assert line["text_chars"] > 0

    bodies = ["{", '{"code": 3}', json.dumps({"code": "words-of-code", "timeout": 0})]
    for body in bodies:
        requests.post(
            url,
            data=body,
            headers={**headers, "Content-Type": "application/json"},
            timeout=20,
        )
    wrong = {"Authorization": "Bearer words-of-a-wrong-key"}
    assert requests.post(url, json={}, headers=wrong, timeout=20).status_code == 401
    scripted_e2b.wait_for(lambda state: state["alive"] == 0)
    service.stop()
    log = "".join(service.lines)
    for line_text in service.lines:
        json.loads(line_text)
    for private in (
        E2B_KEY,
        PROXY_KEY,
        "words-of",
        scripted_e2b.state()["sandboxes"][0]["id"],
    ):
        assert private not in log


def test_the_services_key_is_in_no_reply_no_log_and_nothing_that_a_sandbox_gets(
    start_service: Start, scripted_e2b: LocalE2B
) -> None:
    service = start_service()
    replies = [service.execute("import os; print(os.environ)"), service.execute(3)]  # type: ignore[arg-type]
    scripted_e2b.set_script({"api_key": "another", "run": OK_RUN})
    replies.append(service.execute())
    for path in ("/health", "/ready", "/metrics", "/openapi.json", "/", "/nothing"):
        replies.append(requests.get(service.url + path, timeout=20))
    for reply in replies:
        assert E2B_KEY not in reply.text + str(reply.headers)
    for request in scripted_e2b.state()["requests"]:
        assert E2B_KEY not in json.dumps(request["body"])
        if request["kind"] in ("run", "health"):
            assert E2B_KEY not in str(request)
        else:
            assert request["headers"]["x-api-key"] == E2B_KEY
    service.stop()
    assert E2B_KEY not in "".join(service.lines)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param('a"b', id="a quote"),
        pytest.param("a" * 500, id="long"),
        pytest.param("a b", id="a space"),
        pytest.param("\xe9", id="not ASCII"),
        pytest.param("", id="empty"),
    ],
)
def test_a_request_id_that_could_forge_is_replaced(
    shared_service: Service, given: str
) -> None:
    response = requests.get(
        f"{shared_service.url}/nothing",
        headers={"X-Request-Id": given.encode("latin-1")},
        timeout=30,
    )
    request_id = response.headers["X-Request-Id"]
    assert re.fullmatch("[0-9a-f]{32}", request_id)
    assert response.json()["error"]["request_id"] == request_id


def test_a_path_cannot_forge_a_line_of_the_log(shared_service: Service) -> None:
    answer_to(shared_service, get("/forged%0a%7B%22level%22:%22error%22%7D%1b%5b31m"))
    line = shared_service.wait_for_log("forged")
    assert json.loads(line)["path"] == '/forged\n{"level":"error"}\x1b[31m'
    assert "\x1b" not in line


# --- the network -----------------------------------------------------


def test_a_forward_proxy_in_the_environment_is_the_way_to_e2b(
    start_service: Start, scripted_e2b: LocalE2B
) -> None:
    """The SDK heeds HTTP_PROXY, for loopback too:
    an operator's proxy may be the only way out."""
    with LocalE2B(script={"run": OK_RUN}) as proxy:
        names = ("HTTP_PROXY", "http_proxy")
        proxies = dict.fromkeys(names, proxy.url)
        service = start_service(**proxies, NO_PROXY="", no_proxy="")
        assert text_of(service.execute())
        proxy.wait_for(lambda state: state["killed"] == 1)
        assert scripted_e2b.state()["requests"] == []


# --- last, for it lasts longest -----------------------------------------------------


def test_sigkill_in_the_middle_of_a_run_the_lifetime_given_at_create_ends_the_sandbox(
    start_service: Start, scripted_e2b: LocalE2B
) -> None:
    scripted_e2b.set_script({"run": {"fault": "silent"}})
    service = start_service()
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(service.execute, timeout=1)
        scripted_e2b.wait_for(is_running)
        workers = psutil.Process(service.process.pid).children()
        for process in (service.process, *workers):
            process.kill()
        with pytest.raises(requests.ConnectionError):
            running.result()
    state = scripted_e2b.wait_for(lambda state: state["alive"] == 0, 20)
    (sandbox,) = state["sandboxes"]
    assert (sandbox["timeout_s"], sandbox["ended_by"]) == (1 + 15, "lifetime")
    assert sandbox["lived_s"] < 17
