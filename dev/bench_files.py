"""The rows of `make bench` for LibreChat's code interpreter: execs, and files.

Kernels are real here, so that what runs in them counts; creating a sandbox takes as
long as in the other rows. Between two calls a kernel is started ahead, which is not
measured.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psutil
from answers import (
    FORM_TYPE,
    JSON_TYPE,
    Answer,
    Client,
    RequestsClient,
    TimedClient,
    check_exec,
    check_file,
    check_size,
    ref_of,
)
from bench_load import Generator, timed_run, wait_until_warm
from bench_table import Row, against, below, median, spread_ms
from launch import clean_environ
from processes import Service, StandIn

# Longer than a kernel takes to start.
PAUSE_S = 0.5
BARE = (
    "import subprocess\n"
    "done = subprocess.run(['bash', '-c', 'echo hi'], capture_output=True, text=True)\n"
    "print(done.stdout, end='')"
)
EXEC_LIMIT = 1.3
PLOT = """import matplotlib.pyplot as plt, pandas as pd
pd.DataFrame({"a": [1, 3, 2]}).plot()
plt.show()"""
# How much longer a script may take for it than a kernel that has imported all.
SCRIPT_MORE_S = 0.25
# Of any one answer, the largest of which takes 20 s.
REQUEST_TIMEOUT_S = 240.0
FORM_HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
FORM_END = b"\r\n--x--\r\n"
# Of the service's memory at 100 MB, in MB.
MEMORY_LIMITS = {"upload": 32, "download": 32, "in": 16, "out": 16}
# Of what the bare SDK takes for the same, and so much longer.
CARRY_LIMIT = 1.3
CARRY_MORE_S = 0.05
CARRIES = 5  # of each, in turn with the bare SDK's
COUNT = "wc -c <{}"
MAKE = "mkdir -p /mnt/data; head -c {} /dev/urandom >/mnt/data/b; echo done"
MB = 1_000_000


@dataclass
class Measured:
    took_s: float = 0.0
    memory_mb: float = 0.0  # at most, above what it was before


def exec_script(
    client: Client, code: str, files: Sequence[dict[str, Any]] = (), lang: str = "bash"
) -> Answer:
    body = json.dumps({"lang": lang, "code": code, "files": list(files)})
    return client.ask("POST", "/v1/exec", body.encode(), JSON_TYPE)


def echo(client: Client) -> float:
    """How long an exec of `echo hi` takes, s."""
    started_at = time.monotonic()
    answer = exec_script(client, "echo hi")
    took_s = time.monotonic() - started_at
    check_exec(answer, "hi\n")
    return took_s


def upload(client: Client, data: bytes) -> dict[str, Any]:
    """The reference to a file that went up as the name a."""

    def form() -> Iterator[bytes]:
        yield FORM_HEAD
        for at in range(0, len(data), MB):
            yield data[at : at + MB]
        yield FORM_END

    return ref_of(client.ask("POST", "/v1/upload", form(), FORM_TYPE))


def download(client: Client, ref: dict[str, Any]) -> Answer:
    path = f"/v1/download/{ref['storage_session_id']}/{ref['id']}"
    return client.ask("GET", path)


def check_taken_in(answer: Answer, data: bytes) -> None:
    """`wc -c` in the sandbox has counted the whole file."""
    check_exec(answer, f"{len(data)}\n")


def check_brought_out(client: Client, answer: Answer, size_bytes: int) -> None:
    """The script's file has come, and is kept with all its bytes."""
    done = check_exec(answer, "done\n", files=1)
    path = f"/v1/sessions/{done.session_id}/objects/{done.file_ids[0]}"
    check_size(client.ask("GET", path), size_bytes)


class FilesBench:
    """A service with a folder for files, and what is asked of it."""

    def __init__(self, service: Service, e2b: StandIn) -> None:
        self._e2b = e2b
        self.client = RequestsClient(service.port, REQUEST_TIMEOUT_S)
        # An echo is held against the bare SDK's: its client takes as little as it can.
        self._timed = TimedClient(service.port, REQUEST_TIMEOUT_S)
        self._worker = psutil.Process(service.process.pid).children()[0]

    def echo_s(self) -> float:
        time.sleep(PAUSE_S)
        return echo(self._timed)

    def kinds(self) -> str:
        """The requests to E2B of one exec with a small file each way."""
        ref = upload(self.client, b"1")
        self._e2b.seconds_when_idle()
        before = len(self._e2b.state()["requests"])
        answer = exec_script(self.client, "cp a b; echo done", [ref])
        check_brought_out(self.client, answer, 1)
        self._e2b.seconds_when_idle()
        requests = self._e2b.state()["requests"][before:]
        kinds = ", ".join(request["kind"] for request in requests)
        return f"{len(requests)}: {kinds}"

    def measure(self, call: Callable[[], Any]) -> tuple[Measured, Any]:
        time.sleep(PAUSE_S)
        with self._memory() as measured:
            started_at = time.monotonic()
            result = call()
            measured.took_s = time.monotonic() - started_at
        return measured, result

    @contextmanager
    def _memory(self) -> Iterator[Measured]:
        measured = Measured()
        before = self._worker.memory_info().rss
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.01):
                grown_mb = (self._worker.memory_info().rss - before) / 1e6
                measured.memory_mb = max(measured.memory_mb, grown_mb)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield measured
        finally:
            done.set()
            watcher.join()


def file_rows(
    create_s: float, kill_s: float, execs: int, megabytes: Sequence[int]
) -> list[Row]:
    """The rows, with the stand-in's delays, so many execs, and files of these sizes."""
    script = {"create": {"delay_s": create_s}, "kill": {"delay_s": kill_s}}
    with tempfile.TemporaryDirectory() as folder, StandIn(script) as e2b:
        environ = clean_environ(e2b.url)
        with Generator(environ) as bare:
            job = {"callers": 1, "code": BARE, "pause_s": PAUSE_S, "prints": "hi"}
            bare.ask("bare", calls=1, **job)
            bare_s = bare.ask("bare", calls=execs, **job)["durations_s"]
        with (
            Generator(environ) as bare,
            Service({**environ, "FILES_DIR": folder}) as service,
        ):
            files = FilesBench(service, e2b)
            files.echo_s()
            ours_s = [files.echo_s() for _ in range(execs)]
            rows = [
                against("exec of `echo hi`", bare_s, ours_s, EXEC_LIMIT),
                Row("requests to E2B of an exec with small files", "", files.kinds()),
            ]
            for size_mb in megabytes:
                rows += _rows_of_size(files, bare, size_mb)
    return rows


def script_rows(calls: int) -> list[Row]:
    """A plot by a script, in sandboxes made ahead, against the same by a kernel."""
    job = {"code": PLOT, "pictures": 1, "warm": True}
    with tempfile.TemporaryDirectory() as folder, StandIn({}) as e2b:
        environ = {**clean_environ(e2b.url), "FILES_DIR": folder}
        with Service({**environ, "WARM_SANDBOXES": "1"}) as service:
            client = TimedClient(service.port, REQUEST_TIMEOUT_S)
            kernels_s = [timed_run(client, job, JSON_TYPE) for _ in range(calls)]
            warm_s = []
            for _ in range(calls):
                wait_until_warm(client)
                # Its Python, started with it, may still import.
                time.sleep(PAUSE_S)
                warm_s.append(plot_s(client))
        with Service(environ) as service:
            client = TimedClient(service.port, REQUEST_TIMEOUT_S)
            cold_s = [plot_s(client) for _ in range(calls)]
    more_s = median(warm_s) - median(kernels_s)
    return [
        Row(
            "a pandas plot by a script, warm; left: by /execute, warm (real kernels)",
            spread_ms(kernels_s),
            spread_ms(warm_s),
            f"{more_s:+.2f} s",
            f"≤ +{SCRIPT_MORE_S:.2f} s",
            missed=more_s > SCRIPT_MORE_S,
        ),
        against("the same; left: by a script, cold (real kernels)", cold_s, warm_s),
    ]


def plot_s(client: Client) -> float:
    """How long a script takes that draws a plot, s."""
    started_at = time.monotonic()
    answer = exec_script(client, PLOT, lang="py")
    took_s = time.monotonic() - started_at
    check_exec(answer, "Files written: plot-1.png\n", files=1)
    return took_s


def _rows_of_size(files: FilesBench, bare: Generator, size_mb: int) -> list[Row]:
    size_bytes = size_mb * MB
    client, data = files.client, os.urandom(size_bytes)
    up, ref = files.measure(lambda: upload(client, data))
    down, downloaded = files.measure(lambda: download(client, ref))
    check_file(downloaded, data)
    make = MAKE.format(size_bytes)

    def take_in() -> None:
        check_taken_in(exec_script(client, COUNT.format("a"), [ref]), data)

    def bring_out() -> None:
        check_brought_out(client, exec_script(client, make), size_bytes)

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        job = {"callers": 1, "calls": 1, "pause_s": PAUSE_S, "size_bytes": size_bytes}
        count = {"file": file.name, "code": _in_bash(COUNT.format("/mnt/data/a"))}
        count["prints"] = str(size_bytes)
        made = {"file": "", "code": _in_bash(make), "prints": "done"}
        into, in_row = _carried(files, bare, take_in, {**job, **count})
        out, out_row = _carried(files, bare, bring_out, {**job, **made})
    in_row, out_row = (
        replace(row, what=f"{size_mb} MB {way}, by an exec (real kernels)")
        for row, way in ((in_row, "in"), (out_row, "out"))
    )
    ways = {"upload": up, "download": down, "in": into, "out": out}
    seconds = f"upload {up.took_s:.1f} s, download {down.took_s:.1f} s"
    rows = [Row(f"{size_mb} MB", "", seconds), in_row, out_row]
    for way, one in ways.items():
        what = f"memory of the service for {size_mb} MB, {way}, at most"
        if size_mb >= 100:
            rows.append(below(what, one.memory_mb, MEMORY_LIMITS[way], "{:.0f} MB"))
    return rows


def _in_bash(command: str) -> str:
    return BARE.replace("echo hi", command)


def _carried(
    files: FilesBench, bare: Generator, call: Callable[[], None], job: dict[str, Any]
) -> tuple[Measured, Row]:
    """What our calls took, the most memory, and how that is beside the bare SDK."""
    bare_s: list[float] = []
    ours: list[Measured] = []
    for _ in range(CARRIES):
        bare_s += bare.ask("files", **job)["durations_s"]
        ours.append(files.measure(call)[0])
    ours_s = [one.took_s for one in ours]
    row = against("", bare_s, ours_s)
    missed = median(ours_s) > CARRY_LIMIT * median(bare_s) + CARRY_MORE_S
    target = f"≤ {CARRY_LIMIT:.2f}, +{CARRY_MORE_S * 1000:.0f} ms"
    most = Measured(median(ours_s), max(one.memory_mb for one in ours))
    return most, replace(row, target=target, missed=missed)
