"""A process that makes load for the bench, and how it is asked to.

`Generator` starts this file, and gives it one job at a time.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING, Any, Self, cast

from answers import JSON_TYPE, Client, TimedClient, WrongAnswer, check_ran, health_of
from launch import POLL_S
from processes import BenchError, Job

if TYPE_CHECKING:
    from e2b_code_interpreter.models import Execution

REQUEST_TIMEOUT_S = 60.0
WARM_TIMEOUT_S = 20.0
HEALTH_TIMEOUT_S = 5.0


class Generator:
    """A process that makes load: this file, which does one job at a time."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._to, self._from = (
            cast(IO[str], self._process.stdin),
            cast(IO[str], self._process.stdout),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def begin(self, do: str, **job: Any) -> None:
        self._to.write(json.dumps({"do": do, **job}) + "\n")
        self._to.flush()

    def result(self) -> dict[str, Any]:
        line = self._from.readline()
        if not line:
            raise BenchError("a load generator died")
        result: dict[str, Any] = json.loads(line)
        if result["failed"]:
            raise BenchError(
                f"{len(result['failed'])} calls failed: {result['failed'][0]}"
            )
        return result

    def ask(self, do: str, **job: Any) -> dict[str, Any]:
        self.begin(do, **job)
        return self.result()


# --- in the generator's process -------------------------------------------------------


def generate() -> None:
    """Do jobs, a line of JSON each, until stdin ends; a line of JSON answers each."""
    kinds = {
        "bare": _bare,
        "files": _files,
        "alone": _alone,
        "service": _service,
        "probe": _probe,
    }
    for line in sys.stdin:
        job = json.loads(line)
        do = kinds[job["do"]]
        try:
            result = do(job)
        except Exception as exc:
            result = {"failed": [_in_words(exc)]}
        print(json.dumps(result), flush=True)


def _in_words(exc: Exception) -> str:
    return f"{type(exc).__name__} {exc}"[:300]


def _in_threads(
    job: Job, make_call: Callable[[], Callable[[], float]]
) -> dict[str, Any]:
    """Have `callers` threads make `calls` calls each, with what `make_call` gives."""
    durations_s: list[float] = []
    failed: list[str] = []
    start = threading.Barrier(job["callers"] + 1)

    def call_repeatedly() -> None:
        call = make_call()
        start.wait()
        for _ in range(job["calls"]):
            time.sleep(job.get("pause_s", 0))
            try:
                durations_s.append(call())
            except Exception as exc:
                failed.append(_in_words(exc))

    threads = [threading.Thread(target=call_repeatedly) for _ in range(job["callers"])]
    for thread in threads:
        thread.start()
    start.wait()
    started_at, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    for thread in threads:
        thread.join()
    now_used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = now_used.ru_utime + now_used.ru_stime - used.ru_utime - used.ru_stime
    took_s = time.monotonic() - started_at
    return {
        "durations_s": durations_s,
        "failed": failed,
        "took_s": took_s,
        "cpu_s": cpu_s,
    }


def _bare(job: Job) -> dict[str, Any]:
    from e2b_code_interpreter import Sandbox

    spent_s = 0.0

    def call() -> float:
        nonlocal spent_s
        if spent_s > job.get("max_sandbox_s", 1e9):
            raise BenchError("the limit of sandbox seconds is reached")
        started_at = time.monotonic()
        with Sandbox.create(timeout=60) as sandbox:
            execution = sandbox.run_code(job["code"])
        took_s = time.monotonic() - started_at
        spent_s += took_s
        _check_execution(execution, job)
        return took_s

    return _in_threads(job, lambda: call)


def _files(job: Job) -> dict[str, Any]:
    """A file of `size_bytes` into a sandbox, whose code counts it; or, without a file
    to send, one that code has made out of it."""
    from e2b_code_interpreter import Sandbox

    def call() -> float:
        started_at = time.monotonic()
        with tempfile.TemporaryFile() as taken, Sandbox.create(timeout=60) as sandbox:
            if job["file"]:
                with open(job["file"], "rb") as file:
                    sandbox.files.write("/mnt/data/a", file)
            execution = sandbox.run_code(job["code"])
            if not job["file"]:
                # Else it asks for the bytes compressed, which takes 16 times as long.
                client = sandbox.files._envd_api_streaming
                client.headers["accept-encoding"] = "identity"
                for piece in sandbox.files.read("/mnt/data/b", format="stream"):
                    taken.write(piece)
                if taken.tell() != job["size_bytes"]:
                    raise BenchError(f"the bare SDK has read {taken.tell()} bytes")
        took_s = time.monotonic() - started_at
        _check_execution(execution, job)
        return took_s

    return _in_threads(job, lambda: call)


def _alone(job: Job) -> dict[str, Any]:
    """Only the run, in a sandbox that is there."""
    from e2b_code_interpreter import Sandbox

    with Sandbox.create(timeout=60) as sandbox:

        def call() -> float:
            started_at = time.monotonic()
            execution = sandbox.run_code(job["code"])
            took_s = time.monotonic() - started_at
            _check_execution(execution, job)
            return took_s

        call()
        return _in_threads(job, lambda: call)


def _check_execution(execution: Execution, job: Job) -> None:
    """Hold the bare SDK's run to what the service's is held to. Raises BenchError."""
    if execution.error:
        raise BenchError(str(execution.error))
    printed = "".join(execution.logs.stdout)
    if job.get("prints", "") not in printed:
        raise BenchError(f"the bare SDK's run printed {printed[:200]!r}")
    pictures = [result for result in execution.results if result.png]
    if len(pictures) != job.get("pictures", 0):
        raise BenchError(f"the bare SDK's run drew {len(pictures)} pictures")


def _service(job: Job) -> dict[str, Any]:
    """POST /execute: the exchange is measured, and what came of it checked after."""
    headers = dict(JSON_TYPE)
    if job.get("session"):
        headers["X-Session-Id"] = job["session"]

    def make_call() -> Callable[[], float]:
        client = TimedClient(job["port"], REQUEST_TIMEOUT_S)
        return lambda: timed_run(client, job, headers)

    return _in_threads(job, make_call)


def timed_run(client: Client, job: Job, headers: Mapping[str, str]) -> float:
    """How long a run took, s.

    Raises WrongAnswer when the answer is not what the job says: `prints` (a line),
    `pictures` (how many) and `picture_bytes` (of each, at least).
    """
    body = json.dumps({"code": job["code"]}).encode()
    if job.get("warm"):
        wait_until_warm(client)
    started_at = time.monotonic()
    answer = client.ask("POST", "/execute", body, headers)
    took_s = time.monotonic() - started_at
    check_ran(
        answer,
        job["code"],
        prints=job.get("prints", ""),
        pictures=job.get("pictures", 0),
        picture_bytes=job.get("picture_bytes", 0),
    )
    return took_s


def wait_until_warm(client: Client) -> None:
    give_up_at = time.monotonic() + WARM_TIMEOUT_S
    while not health_of(client.ask("GET", "/health"))["warm_ready"]:
        if time.monotonic() > give_up_at:
            raise BenchError("no sandbox was made ahead")
        time.sleep(POLL_S)


def _probe(job: Job) -> dict[str, Any]:
    """Ask /health for some seconds as a monitor does, on a new connection each time."""
    durations_s: list[float] = []
    failed: list[str] = []
    end_at = time.monotonic() + job["for_s"]
    while (started_at := time.monotonic()) < end_at:
        client = TimedClient(job["port"], HEALTH_TIMEOUT_S)
        try:
            answer = client.ask("GET", "/health")
            durations_s.append(time.monotonic() - started_at)
            health_of(answer)
        except WrongAnswer as exc:
            failed.append(str(exc))
        finally:
            client.close()
        time.sleep(0.025)
    return {"durations_s": durations_s, "failed": failed}


if __name__ == "__main__":
    generate()
