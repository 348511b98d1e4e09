"""Waits for what the caller's code has begun, and did not wait for itself.

in_sandbox/kernel.py runs this when there is something to wait for, after the cell."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import subprocess
import sys
import threading
import time
from typing import Any

# A process may be a server, which does not end.
LONGEST_WAIT_FOR_PROCESS_S = 2.0
MOST_NAMED: int  # kernel.py's


def wait_for(tasks: set[Any], begun: list[Any], give_up_at: float) -> None:
    """Wait for tasks, which run in cells only, and for what these references are of."""

    def left_s() -> float:
        return max(0, give_up_at - time.monotonic())

    if tasks:
        loop = asyncio.get_event_loop()
        loop.run_until_complete(asyncio.wait(tasks, timeout=left_s()))
    running = ["task " + task.get_name() for task in tasks if not task.done()]
    for one in filter(None, (reference() for reference in begun)):
        if isinstance(one, threading.Thread):
            one.join(left_s())
            if one.is_alive():
                running.append("thread " + one.name)
        elif isinstance(one, subprocess.Popen):
            with contextlib.suppress(Exception):
                one.wait(min(left_s(), LONGEST_WAIT_FOR_PROCESS_S))
            if one.returncode is None:
                running.append(f"process {one.args!r}")
        elif concurrent.futures.wait([one], left_s()).not_done:
            running.append("call of an executor")
    if running:
        shown = ", ".join(running[:MOST_NAMED])
        print(len(running), "still running at the end:", shown, file=sys.stderr)
