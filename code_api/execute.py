"""One exec: one sandbox, one run of the script, its files put into the store."""

from time import monotonic
from typing import Any

from code_api.cells import exec_cells
from code_api.names import new_id
from code_api.reply import reply_body
from code_api.report import Output, Report
from code_api.request import ExecRequest
from code_api.store import NewSession, Store, StoreError
from config import CARRIED_BYTES_PER_S, OVERHEAD_S, Config
from metrics import EXECS
from pool import Pool
from run import Run
from sandbox import Sandbox, SandboxGone, Unavailable

# Of the overhead, for what remains to be done after the script, on a busy machine too.
_RESERVE_S = 1.5
_MAX_ERROR_CHARS = 500  # of the notebook's own error, for stderr
_TOO_LATE = "the sandbox did not answer in time"
_NO_END = "the sandbox did not report the script's end"


class Exec:
    """An exec; once it was `run`, what the log may tell of it is here."""

    def __init__(
        self, request: ExecRequest, pool: Pool, store: Store, config: Config
    ) -> None:
        self.outcome = "unavailable"  # or "ok", "error", "timeout"
        self.durations_s: dict[str, float] = {}
        self.outputs: list[Output] = []
        self._request = request
        self._notes = request.notes
        self._pool = pool
        self._store = store
        self._max_file_bytes = config.max_file_bytes
        self._carry_s = request.input_bytes() // CARRIED_BYTES_PER_S
        # But for the script's own time, all has to be done by then.
        self._carried_by = monotonic() + OVERHEAD_S + self._carry_s

    def run(self) -> dict[str, Any]:
        """Run it, once. Returns the reply; raises Full, all else is in the reply."""
        session_id = new_id()
        report = None
        if self._request.language:
            try:
                with self._store.new_session() as session:
                    session_id = session.id
                    report = Report(session, self._max_file_bytes)
                    self._run_in_a_sandbox(report)
                    self._publish(session, report)
            except StoreError as exc:
                self._notes.append(str(exc))
        EXECS.labels(self._request.language_name, self.outcome).inc()
        return reply_body(session_id, report, self.outputs, self._notes)

    def _publish(self, session: NewSession, report: Report) -> None:
        outputs = report.finish()
        if outputs:
            session.publish()
        self.outputs = outputs

    def _run_in_a_sandbox(self, report: Report) -> None:
        try:
            try:
                self._run_in_sandbox(report)
            except SandboxGone:
                # Nothing has run. Others that were made ahead may be gone as well.
                self._run_in_sandbox(report, must_be_new=True)
        except Unavailable as exc:
            self._notes.append(str(exc))

    def _run_in_sandbox(self, report: Report, must_be_new: bool = False) -> None:
        """Raises SandboxGone while the script cannot have begun, and Unavailable."""
        limit_s = self._request.limit_s
        made_by = self._carried_by - self._carry_s - _RESERVE_S
        lease = self._pool.sandbox(
            limit_s + self._carry_s, made_by, self.durations_s, must_be_new
        )
        with lease as sandbox:
            for cell in exec_cells(self._request):
                extra_s = limit_s if cell.runs_script else 0
                if not self._run_cell(sandbox, cell.code, report, extra_s):
                    return
            if not report.outcome:
                self._notes.append(_NO_END)
            self._fetch(sandbox, report)

    def _fetch(self, sandbox: Sandbox, report: Report) -> None:
        """Have those files reported that did not come with the run."""
        pieces = list(report.pieces())
        if not pieces:
            return
        extra_s = self._request.limit_s + report.wanted_bytes // CARRIED_BYTES_PER_S
        try:
            sandbox.live_for_at_least(extra_s)
            for piece in pieces:
                code = f"the_exec.send{piece}"
                if not self._run_cell(sandbox, code, report, extra_s):
                    return
        except Unavailable as exc:
            self._notes.append(str(exc))

    def _run_cell(
        self, sandbox: Sandbox, code: str, report: Report, extra_s: int
    ) -> bool:
        """Whether it ran to its end; why not is noted. Raises SandboxGone."""
        run = Run.empty(_MAX_ERROR_CHARS)
        run.stdout = report
        limit_s = self._carried_by + extra_s - monotonic()
        sandbox.run_cell(code, limit_s, run)
        took_s = self.durations_s.get("run", 0.0)
        self.durations_s["run"] = took_s + run.durations_s["run"]
        self.outcome = report.outcome or "unavailable"
        problem = report.problem or _cell_problem(run)
        if problem:
            self._notes.append(problem)
        return not problem


def _cell_problem(run: Run) -> str:
    if run.outcome == "ok":
        return ""
    if run.outcome == "timeout":
        return _TOO_LATE
    if run.problem:
        return run.problem
    return f"the sandbox failed: {run.error_name}: {run.error_value}"
