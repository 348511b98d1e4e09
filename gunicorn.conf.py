"""The process: gunicorn picks this file up from the working directory (`gunicorn proxy:app`).

Settings only: what they name is in worker.py.
"""

import os
import resource
import sys

from config import Config
from worker import JsonLogger, PatientWorker

try:
    settings = Config.from_env(os.environ)
except ValueError as exc:
    # In the master, before any worker: there is nothing to start again.
    sys.exit(str(exc))

bind = f"{settings.host}:{settings.port}"
# One worker: the limits are the process's, and the SDK's transport does not survive a fork.
workers = 1
worker_class = PatientWorker
# A run may still be drawing or sending when its slot has a next one; the rest is for /health.
threads = 2 * settings.max_concurrent_runs + 8
max_open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
worker_connections = max(100, min(4000, max_open_files // 2))
# s; above Node's 5 s, or LibreChat sees ECONNRESET now and then.
keepalive = 65
# s; the longest request, then the kills.
graceful_timeout = settings.longest_request_s() + 10
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
control_socket_disable = True
logger_class = JsonLogger


def when_ready(server):
    local_hosts = ("127.0.0.1", "[::1]", "localhost")
    if not settings.proxy_api_key and settings.host not in local_hosts:
        server.log.warning(
            "Whoever reaches %s can run code at your cost: set PROXY_API_KEY", bind
        )


def worker_exit(server, worker):
    if worker.wsgi:
        worker.wsgi.extensions["service"].close()
