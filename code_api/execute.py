"""One exec: one sandbox, one run of the script, its files put into the store."""

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from time import monotonic

from caller import Caller
from code_api.cells import exec_cell
from code_api.languages import LANGUAGES
from code_api.limits import DATA
from code_api.reading import file_to_read
from code_api.report import Report, Written
from code_api.request import ExecRequest
from code_api.staging import staging_of
from code_api.store import NotStored, Store, StoreError
from config import CARRIED_BYTES_PER_S, OVERHEAD_S, Config
from in_flight import LARGE_BYTES
from metrics import EXECS, OUTCOMES
from run import Limits, Run
from sandboxes.files import Cut, read_file, write_files
from sandboxes.pool import BudgetSpent, Full, Need, Pool
from sandboxes.sandbox import Sandbox, SandboxGone, Unavailable

RunInSession = Callable[[ExecRequest, Report, Caller], None]
_MAX_ERROR_CHARS = 500  # of the notebook's own error, for stderr
_TOO_LATE = "the sandbox did not answer in time"
_NO_END = "the sandbox did not report the script's end"

# Each is there with 0 from the start, or a rate would not see the first of it.
for _language in (*LANGUAGES, "other"):
    for _outcome in OUTCOMES:
        EXECS.labels(_language, _outcome)


def run_exec(
    request: ExecRequest,
    pool: Pool,
    store: Store,
    config: Config,
    caller: Caller,
    run_in_session: RunInSession | None = None,
) -> Report:
    """Run an exec once. Raises Full; any other failure is in the report, which has to
    be closed. `run_in_session` runs one that has a hint.

    When the caller hangs up it is stopped, and no file of it is kept."""
    with ExitStack() as on_error, store.new_session() as session:
        assert config.files_dir  # noqa: S101 - no store without it
        report = Report(request, session, config.max_file_bytes, config.files_dir)
        on_error.callback(report.close)
        with _failures_noted(report):
            try:
                if request.language and request.session_hint and run_in_session:
                    run_in_session(request, report, caller)
                elif request.language and not _is_answered_from_store(request, report):
                    work = Exec(request, report)
                    need = Need(work.limit_s, caller=caller)
                    pool.use(work.run_in, need, durations_s={})
            except Full:
                EXECS.labels(request.language_name, "full").inc()
                raise
        if len(request.code) > LARGE_BYTES:
            # It is still held by reference cycles of the SDK's HTTP client.
            gc.collect()
        if caller.is_gone:
            report.outcome = "cancelled"
        else:
            with _failures_noted(report):
                report.publish()
        on_error.pop_all()
    EXECS.labels(request.language_name, report.outcome).inc()
    return report


def _is_answered_from_store(request: ExecRequest, report: Report) -> bool:
    """Whether the script only prints a file, which is then its output."""
    stored = file_to_read(request)
    if not stored:
        return False
    try:
        with stored.open() as file:
            report.take_file_as_output(file)
    except NotStored:
        return False  # it is a missing file in the sandbox, too
    return True


@contextmanager
def _failures_noted(report: Report) -> Iterator[None]:
    try:
        yield
    except (Unavailable, StoreError) as exc:
        if isinstance(exc, BudgetSpent):
            report.outcome = "budget"
        report.notes.append(f"Error: {exc}")


class Exec:
    """The steps of an exec share this: the report that they fill, and one deadline."""

    def __init__(self, request: ExecRequest, report: Report) -> None:
        self._request = request
        self._report = report
        carry_s = request.input_bytes() // CARRIED_BYTES_PER_S
        self.limit_s = request.limit_s + carry_s
        self._deadline = monotonic() + OVERHEAD_S + self.limit_s

    def run_in(self, sandbox: Sandbox) -> None:
        """Run the exec. Raises Unavailable if something fails before or in the script,
        and SandboxGone only while the script cannot have begun."""
        staging = staging_of(self._request)
        try:
            write_files(sandbox, staging.files, self._left_s())
        except Cut as exc:
            # Nothing has run, so all is tried once more in a new sandbox.
            raise SandboxGone(str(exc)) from exc
        self._run_cell(sandbox, exec_cell(self._request, staging))
        self._finish(sandbox)

    def _finish(self, sandbox: Sandbox) -> None:
        """Once the cell has run: look for its end, and fetch its files."""
        if self._report.outcome == "unavailable":
            raise Unavailable(_NO_END)
        with _failures_noted(self._report):
            self._fetch(sandbox)

    def _left_s(self) -> float:
        return self._deadline - monotonic()

    def _fetch(self, sandbox: Sandbox) -> None:
        """Fetch the files that did not come with the run. What does not come is left
        out, and said so, when the report is published."""
        to_fetch = self._report.to_fetch()
        if not to_fetch:
            return
        self._deadline += self._report.wanted_bytes() // CARRIED_BYTES_PER_S
        sandbox.live_for_at_least(math.ceil(self._left_s()))
        for name, output in to_fetch.items():
            if self._left_s() > 0:
                with suppress(Unavailable):
                    _fetch_file(sandbox, name, output, self._left_s())

    def _run_cell(self, sandbox: Sandbox, code: str) -> None:
        """Run a cell to its end. Raises Unavailable, whose message becomes a note."""
        run = Run.empty(Limits(_MAX_ERROR_CHARS))
        run.stdout = self._report
        sandbox.run(code, self._left_s(), run)
        problem = self._report.problem or _cell_problem(run)
        if problem:
            raise Unavailable(problem)


def _fetch_file(sandbox: Sandbox, name: str, output: Written, limit_s: float) -> None:
    """Raises Unavailable, also if the file is larger by now, and StoreError."""
    with output.file.opened() as write:

        def take(data: bytes) -> None:
            output.check(data)
            write(data)

        try:
            read_file(sandbox, f"{DATA}/{name}", take, limit_s)
        except ValueError as exc:
            raise Unavailable(str(exc)) from None


def _cell_problem(run: Run) -> str:
    if run.outcome == "ok":
        return ""
    if run.outcome == "timeout":
        return _TOO_LATE
    if run.problem:
        return run.problem
    return f"the sandbox failed: {run.error_name}: {run.error_value}"
