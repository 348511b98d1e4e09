"""The process: gunicorn picks this file up from the working directory (`gunicorn proxy:app`)."""

import contextlib
import json
import logging
import os
import resource
import socket
import sys
import time
from concurrent.futures import Future
from datetime import UTC, datetime

from gunicorn import glogging
from gunicorn.workers import gthread

from config import OVERHEAD_S, Config

try:
    settings = Config.from_env(os.environ)
except ValueError as exc:
    sys.exit(
        str(exc)
    )  # in the master, before any worker: there is nothing to start again

_RECEIVE_LIMIT_S = 15
_keys = [key for key in (settings.e2b_api_key, settings.proxy_api_key) if len(key) > 7]
_receiving = {}  # connection: since when, in seconds


class JsonFormatter(logging.Formatter):
    """One JSON object a line: the message, and what was given as `extra={"fields": {...}}`."""

    def format(self, record):
        now = datetime.fromtimestamp(record.created, UTC).isoformat(
            timespec="milliseconds"
        )
        message = super().format(record)  # with the traceback of an exception
        line = {"time": now, "level": record.levelname.lower(), "message": message}
        text = json.dumps(line | getattr(record, "fields", {}))
        for key in _keys:
            text = text.replace(key, "[key]")
        return text


class JsonLogger(glogging.Logger):
    """gunicorn's own lines, and ours; LOG_LEVEL is not the SDK's, whose debug lines hold code."""

    def setup(self, cfg):
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(JsonFormatter())
        logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
        logging.getLogger("e2b_proxy").setLevel(settings.log_level.upper())
        self.error_log.setLevel(settings.log_level.upper())
        self.error_log.propagate = True


class PatientWorker(gthread.ThreadWorker):
    """A threaded worker in which a slow or silent client holds no thread for long."""

    def enqueue_req(self, conn):
        if conn.initialized or conn.data_ready:
            return super().enqueue_req(conn)
        # Its first bytes are waited for in the poller; gunicorn would hold a thread for 5 s.
        deferred = Future()
        deferred.set_result(gthread._DEFER)
        return self.finish_request(conn, deferred)

    def handle(self, conn):
        _receiving[conn] = time.monotonic()
        try:
            return super().handle(conn)
        finally:
            del _receiving[conn]

    def notify(self):
        """Called every second: cut off whose request, or the reply to it, takes too long."""
        super().notify()
        for conn in self.pending_conns if not self._accepting else ():
            conn.timeout = (
                0  # at the end, and when there are too many, silent ones go first
            )
        for conn, since in list(_receiving.items()):
            age_s = time.monotonic() - since
            with contextlib.suppress(OSError):  # it is gone already
                # The application sets a timeout on the socket once it has the whole request.
                if age_s > _RECEIVE_LIMIT_S and conn.sock.gettimeout() is None:
                    conn.sock.shutdown(socket.SHUT_RD)
                elif age_s > settings.run_timeout_s + OVERHEAD_S + 30:
                    conn.sock.shutdown(socket.SHUT_RDWR)


bind = f"{settings.host}:{settings.port}"
# One worker: the limits are the process's, and the SDK's transport does not survive a fork.
workers = 1
worker_class = PatientWorker
# A run may still be drawing or sending when its place has a next one; the rest is for /health.
threads = 2 * settings.max_concurrent_runs + 8
worker_connections = max(
    100, min(4000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
)
keepalive = 65  # s; above Node's 5 s, or LibreChat sees ECONNRESET now and then
graceful_timeout = (
    settings.run_timeout_s + OVERHEAD_S + 10
)  # the longest request, then the kills
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
control_socket_disable = True
logger_class = JsonLogger


def when_ready(server):
    if not settings.proxy_api_key and settings.host not in (
        "127.0.0.1",
        "[::1]",
        "localhost",
    ):
        server.log.warning(
            "Whoever reaches %s can run code at your cost: set PROXY_API_KEY", bind
        )


def worker_exit(server, worker):
    if worker.wsgi:
        worker.wsgi.extensions["service"].pool.close()
