"""The process: gunicorn picks this file up from the working directory (`gunicorn proxy:app`)."""

import os
import resource
import socket
import sys
import time
from concurrent.futures import Future

from gunicorn.workers import gthread

from config import OVERHEAD_S, Config, ConfigError
from logs import logging_config

try:
    settings = Config.from_env(os.environ)
except ConfigError as exc:
    # Here, in the master and before any worker, so that there is nothing to start again.
    sys.exit(str(exc))

_RECEIVE_LIMIT_S = 15


class PatientWorker(gthread.ThreadWorker):
    """A threaded worker in which a slow or silent client holds no thread for long."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._receiving_since = {}

    def enqueue_req(self, conn):
        if conn.initialized or conn.data_ready:
            super().enqueue_req(conn)
        else:
            # A new connection waits for its first bytes in the poller; gunicorn's own way is to
            # hold a thread for 5 s, so that some silent ones would keep /health waiting.
            deferred = Future()
            deferred.set_result(gthread._DEFER)
            self.finish_request(conn, deferred)

    def handle(self, conn):
        self._receiving_since[conn] = time.monotonic()
        try:
            return super().handle(conn)
        finally:
            del self._receiving_since[conn]

    def notify(self):
        """Called every second: cut off whose request is not all here after the limit."""
        super().notify()
        for conn, since in list(self._receiving_since.items()):
            # The application sets a timeout on the socket once it has the whole request.
            if time.monotonic() - since > _RECEIVE_LIMIT_S and conn.sock.gettimeout() is None:
                try:
                    conn.sock.shutdown(socket.SHUT_RD)
                except OSError:
                    pass  # it is gone already


bind = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
# One worker: the limits are the process's, and the SDK's transport does not survive a fork.
workers = 1
worker_class = PatientWorker
# A run holds one, and may still be drawing or sending when its place has a next run already;
# the rest is for /health and for refusals. They are made as they are needed.
threads = 2 * settings.max_concurrent_runs + 8
worker_connections = max(100, min(4000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
keepalive = 65  # s; above Node's 5 s, or LibreChat sees ECONNRESET now and then
timeout = 120  # s without a sign of life from the worker's main thread
graceful_timeout = settings.run_timeout_s + OVERHEAD_S + 10  # the longest request, then the kills
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
control_socket_disable = True
limit_request_line = 4094
limit_request_fields = 64
limit_request_field_size = 8190
accesslog = None  # the application logs each request
logconfig_dict = logging_config(settings.log_level)


def when_ready(server):
    if not settings.proxy_api_key and settings.host not in ("127.0.0.1", "::1", "localhost"):
        server.log.warning(
            "Anyone who reaches %s can run code at your expense: set PROXY_API_KEY.", bind
        )


def worker_exit(server, worker):
    if worker.wsgi:
        worker.wsgi.extensions["service"].pool.close()
