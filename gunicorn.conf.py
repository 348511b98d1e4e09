"""The process: gunicorn picks this file up from the working directory.

    gunicorn proxy:app

It has settings and hooks only; the classes that they name are in process/.
"""

import os
import resource
import sys

from config import Config
from process.addresses import exit_if_taken

try:
    settings = Config.from_env(os.environ)
except ValueError as exc:
    # This runs in the master, before there is a worker. A supervisor that knows this
    # exit status does not restart a service that would stop at once.
    print(exc, file=sys.stderr)
    sys.exit(os.EX_CONFIG)

bind = f"{settings.host}:{settings.port}"
# One worker: the limits hold within one process, and the SDK's transport does not
# survive a fork.
workers = 1
# This worker bounds how long slow clients hold threads. While 60 clients stall in a
# body /health answers in 0.00 s; with gunicorn's own worker, `gthread`, it did not in
# 20 s. Behind a proxy that buffers requests `gunicorn -k gthread proxy:app` is as good,
# except that a run goes on when its caller hangs up.
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
# Each slot has two threads: a run may still be drawing or sending when the next run has
# its slot. The other eight are for requests such as /health.
threads = min(2 * runs + 8, worker_connections - 1)
# Browsers and proxies send some 40 headers. The longest ones hold a token of 4 kB, or
# all cookies of a site. Together the headers may have 32 KiB (process/worker.py).
limit_request_fields = 64
limit_request_field_size = 8190
limit_request_line = 4094
# In seconds. It must be above Node's 5 s, or LibreChat sees ECONNRESET now and then.
keepalive = 65
# In seconds: the longest request, then the kills.
graceful_timeout = settings.longest_request_s() + 10
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
control_socket_disable = True
# By default a proxy on this machine may set SCRIPT_NAME: then the path that it checked
# is not the one that is served.
forwarder_headers = ""
# With sendfile the system would send files past the worker's ClientSocket, which
# notices clients that do not read.
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
    # There is none if it could not be loaded, nor in the master's copy of a worker.
    app = getattr(worker, "wsgi", None)
    if app:
        app.extensions["pool"].close()
