"""gunicorn's worker and logger as this service needs them. Nothing else knows gunicorn's insides.

What is overridden here is private to gunicorn's threaded worker, so its version is pinned
exactly, and tests/test_worker.py holds what is assumed of it. The worker's main thread accepts
connections and polls those that are silent; a pool of threads answers requests:

    accept -> enqueue_req -> handle (in a thread) -> finish_request (in the main thread)
"""

import contextlib
import logging
import os
import socket
import sys
import time
from concurrent.futures import Future
from typing import Any

from gunicorn import glogging
from gunicorn.workers import gthread

from config import Config
from json_log import JsonFormatter

# For a request to arrive whole: LibreChat sends its own in milliseconds.
_RECEIVE_LIMIT_S = 15
# For a reply to be sent, beyond the longest run and the kills after it.
_SEND_MARGIN_S = 20


class JsonLogger(glogging.Logger):
    """gunicorn's own lines, and ours; LOG_LEVEL is not the SDK's, whose debug lines hold code."""

    def setup(self, cfg: Any) -> None:
        settings = Config.from_env(os.environ)
        level = settings.log_level.upper()
        handler = logging.StreamHandler(sys.stdout)
        keys = (settings.e2b_api_key, settings.proxy_api_key)
        handler.setFormatter(JsonFormatter(keys))
        logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
        logging.getLogger("e2b_proxy").setLevel(level)
        self.error_log.setLevel(level)
        self.error_log.propagate = True


class PatientWorker(gthread.ThreadWorker):
    """A threaded worker that bounds how long a slow or silent client holds a thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._handled_since: dict[gthread.TConn, float] = {}  # monotonic, s
        self._request_limit_s = self.cfg.graceful_timeout + _SEND_MARGIN_S

    def enqueue_req(self, conn: gthread.TConn) -> None:
        """Give a connection a thread, once its first bytes are there."""
        if conn.initialized or conn.data_ready:
            super().enqueue_req(conn)
            return
        # The poller waits for the first bytes; gunicorn would hold a thread for 5 s.
        deferred: Future[object] = Future()
        deferred.set_result(gthread._DEFER)
        self.finish_request(conn, deferred)

    def handle(self, conn: gthread.TConn) -> object:
        self._handled_since[conn] = time.monotonic()
        try:
            return super().handle(conn)
        finally:
            del self._handled_since[conn]

    def notify(self) -> None:
        """Called every second: cut off whose request, or the reply to it, takes too long."""
        super().notify()
        if not self._accepting:
            # At the end, and when there are too many, silent ones go first.
            for conn in self.pending_conns:
                conn.timeout = 0
        for conn, since in list(self._handled_since.items()):
            age_s = time.monotonic() - since
            with contextlib.suppress(OSError):  # it is gone already
                if age_s > _RECEIVE_LIMIT_S and _is_receiving(conn.sock):
                    conn.sock.shutdown(socket.SHUT_RD)
                elif age_s > self._request_limit_s:
                    conn.sock.shutdown(socket.SHUT_RDWR)


def _is_receiving(sock: socket.socket) -> bool:
    """The application sets a timeout on the socket once it has the whole request."""
    return sock.gettimeout() is None
