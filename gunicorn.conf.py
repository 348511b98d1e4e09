"""The process: gunicorn picks this file up from the working directory.

    gunicorn proxy:app

Settings and hooks only: what they name is in process/.
"""

import os
import resource
import sys

from config import Config
from process.addresses import exit_if_taken

try:
    settings = Config.from_env(os.environ)
except ValueError as exc:
    # In the master, before any worker. A supervisor that knows this status does not
    # start a service again that would stop at once.
    print(exc, file=sys.stderr)
    sys.exit(os.EX_CONFIG)

bind = f"{settings.host}:{settings.port}"
# One worker: the limits are the process's, and the SDK's transport does not survive a
# fork.
workers = 1
# It bounds how long slow clients hold threads: beside 60 that stall in a body /health
# answers in 0.00 s, where gunicorn's own worker, `gthread`, has none in 20 s. Behind a
# proxy that buffers requests that one does as well: `gunicorn -k gthread proxy:app`.
worker_class = "process.worker.PatientWorker"
# OWN: descriptors of the process itself. RUN: those of a run, for its stream, its
# create or kill, and a child's pipe.
OWN_DESCRIPTORS = 32
RUN_DESCRIPTORS = 3
max_descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
# How many runs fit, with one more descriptor for each caller.
max_runs = (max_descriptors - OWN_DESCRIPTORS) // (RUN_DESCRIPTORS + 1)
runs = min(settings.max_concurrent_runs, max_runs)
left_descriptors = max_descriptors - OWN_DESCRIPTORS - RUN_DESCRIPTORS * runs
# Further connections wait in the kernel's accept queue.
worker_connections = min(4000, left_descriptors)
# A run may still be drawing or sending when its slot has a next one; the rest is for
# /health.
threads = min(2 * runs + 8, worker_connections - 1)
# Browsers and proxies send some 40 headers. Of one, a token of 4 kB or all cookies of a
# site are the longest; all together may have 32 KiB (process/worker.py).
limit_request_fields = 64
limit_request_field_size = 8190
limit_request_line = 4094
# In seconds. It is above Node's 5 s: else LibreChat sees ECONNRESET now and then.
keepalive = 65
# In seconds: the longest request, then the kills.
graceful_timeout = settings.longest_request_s() + 10
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
control_socket_disable = True
# By default a proxy on this machine may set SCRIPT_NAME: then the path that it checked
# is not the one that is served.
forwarder_headers = ""
# The system would send a file past the worker's ClientSocket, which notices clients
# that do not read.
sendfile = False
logger_class = "process.json_log.JsonLogger"


def on_starting(server):
    exit_if_taken(server.cfg.address)


def when_ready(server):
    if runs < settings.max_concurrent_runs:
        server.log.warning(
            "The limit of %s open files holds %s runs at once, MAX_CONCURRENT_RUNS is "
            "%s",
            max_descriptors,
            runs,
            settings.max_concurrent_runs,
        )
    for warning in settings.warnings(os.environ):
        server.log.warning("%s", warning)
    local_hosts = ("127.0.0.1", "[::1]", "localhost")
    if not settings.proxy_api_key and settings.host not in local_hosts:
        server.log.warning(
            "Whoever reaches %s can run code at your cost: set PROXY_API_KEY", bind
        )


def worker_exit(server, worker):
    # None where it could not be loaded; the master's copy of a worker has none, either.
    app = getattr(worker, "wsgi", None)
    if app:
        app.extensions["pool"].close()
