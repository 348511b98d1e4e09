"""What worker.py assumes of gunicorn's insides, and the lines of the log."""

from __future__ import annotations

import inspect
import json
import logging
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
from gunicorn import glogging, util
from gunicorn.http import body, unreader, wsgi
from gunicorn.workers import gthread

from conftest import ROOT
from process.json_log import JsonFormatter, JsonLogger
from process.worker import PatientWorker

WHEN_IT_CHANGES = (
    "worker.py overrides private parts of gunicorn's threaded worker. Read what "
    "changed in its"
    " gthread.py, glogging.py and util.py against worker.py, run this file and"
    " test_process.py beside it, then name the new version in requirements.in and lock."
)


# --- what of gunicorn's insides this rests on -----------------------------------------


def test_gunicorn_is_the_version_that_the_worker_was_written_against() -> None:
    pinned = re.search(
        r"^gunicorn==(\S+)$", (ROOT / "requirements.in").read_text(), re.M
    )
    assert pinned, WHEN_IT_CHANGES
    assert version("gunicorn") == pinned[1] == "27.0.1", WHEN_IT_CHANGES


@pytest.mark.parametrize("ours", [PatientWorker, JsonLogger])
def test_each_method_of_the_worker_and_the_logger_overrides_one_that_takes_the_same(
    ours: type,
) -> None:
    base = ours.__bases__[0]
    for name, method in vars(ours).items():
        if inspect.isfunction(method) and name != "__init__" and name[0] != "_":
            theirs = getattr(base, name, None)
            assert theirs, f"{name}: {WHEN_IT_CHANGES}"
            taken = list(inspect.signature(method).parameters)
            assert taken == list(inspect.signature(theirs).parameters), WHEN_IT_CHANGES


def test_the_base_classes_use_what_the_worker_reads_and_sets() -> None:
    used = {
        gthread.ThreadWorker: (
            *("can_accept != self._accepting", "self._accepting = enabled"),
            *("self.pending_conns", "self._cap_keepalive(", "self.sockets"),
            *("self.on_pending_socket_readable", "self.set_accept_enabled(False)"),
            *("self.get_thread_pool()", "self.wait_for_and_dispatch_events("),
            *("self.handle_request(req, conn)", "self.poller.register("),
            "req = next(conn.parser)",
        ),
        gthread.TConn: ("self.data_ready", "self.sock", "def set_timeout"),
        unreader.SocketUnreader: ("self.sock.recv(size)",),
        unreader.Unreader: ("def take_buffered",),
        body.Body: ("self.failed = True",),
        body.LengthReader: ("self.length -= size",),
        body.ChunkedReader: (
            *("self.parser = self.parse_chunked(unreader)", "self.parser = None"),
            "> self.limit_trailer_section",
        ),
        wsgi.Response: ("self.req.should_close()",),
        util.write: ("sock.sendall(data)",),
        glogging.Logger: ("self.error_log",),
    }
    for owner, texts in used.items():
        for text in texts:
            assert text in inspect.getsource(owner), f"{text}: {WHEN_IT_CHANGES}"


# --- the lines of the log -----------------------------------------------------


def test_a_key_with_a_quote_or_a_backslash_is_hidden_too() -> None:
    key = 'top"secret\\key'
    record = logging.makeLogRecord({"msg": f"about {key}", "fields": {"path": key}})
    line = json.loads(JsonFormatter([key]).format(record))
    assert line["message"] == "about [key]"
    assert line["path"] == "[key]"


def test_a_line_is_one_json_object_without_a_key_and_with_the_traceback() -> None:
    formatter = JsonFormatter(["top-secret-key", "short"])
    try:
        raise ValueError("about top-secret-key")
    except ValueError:
        record = logging.LogRecord(
            "a", logging.ERROR, "f", 1, "in\nshort", (), sys.exc_info()
        )
    record.fields = {"path": "/top-secret-key"}
    text = formatter.format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert line["level"] == "error"
    assert line["path"] == "/[key]"
    assert line["message"].startswith("in\nshort\nTraceback")
    assert line["message"].endswith("ValueError: about [key]")


def test_a_line_longer_than_a_pipe_takes_at_once_arrives_whole() -> None:
    program = (
        "import logging, process.json_log as log\n"
        "handler = log.QueuedStdout()\n"
        "handler.setFormatter(log.JsonFormatter([]))\n"
        "handler.handle(logging.makeLogRecord({'msg': 20_000 * 'x'}))\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True
    )
    assert len(json.loads(finished.stdout)["message"]) == 20_000
    assert finished.stdout.endswith(b"\n")
