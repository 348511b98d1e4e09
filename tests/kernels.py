"""Real kernels of the stand-in, into which tests send cells as the pool does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from builders import SET_UP

from config import Config
from conftest import E2B_KEY
from formatter import format_run
from run import Run
from sandboxes.sandbox import Sandbox
from sandboxes.set_up import for_kernel
from texts.cell import Cell

CONFIG = Config(e2b_api_key=E2B_KEY, max_output_chars=100_000)
LIMIT_S = 60
# One kernel may be for all tests of a file, and a busy machine takes minutes for these.
LIFETIME_S = 3600


class Kernel:
    """A sandbox, into whose kernel cells are sent as the pool sends them."""

    def __init__(self, set_up: str = SET_UP) -> None:
        self.sandbox = Sandbox(CONFIG)
        self.sandbox.create(lifetime_s=LIFETIME_S, budget_s=60)
        self._set_up = set_up

    def run(self, code: str) -> Run:
        sent = for_kernel(Cell(code), self._set_up, LIMIT_S)
        self._set_up = ""
        return self.run_as_it_is(sent)

    def run_as_it_is(self, code: str) -> Run:
        """Without a cell around it."""
        run = Run.empty(CONFIG.run_limits())
        self.sandbox.run(code, LIMIT_S, run)
        Cell(code).mend(run, self.sandbox.id)
        return run

    def text(self, code: str) -> str:
        return format_run(self.run(code), CONFIG.max_output_chars)

    def printed(self, code: str) -> str:
        run = self.run(code)
        text = format_run(run, CONFIG.max_output_chars)
        assert run.outcome == "ok", text
        assert not run.stderr.text(), text
        return run.stdout.text()


@contextmanager
def kernel(set_up: str = SET_UP) -> Iterator[Kernel]:
    started = Kernel(set_up)
    try:
        yield started
    finally:
        started.sandbox.kill()
