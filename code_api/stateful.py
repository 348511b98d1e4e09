"""Stateful code sessions: execs with a hint share one sandbox, and its /mnt/data.

Imported only with FILES_DIR and SESSION_IDLE_S. A session is a sandbox that is kept, as
for the sessions of POST /execute, but what lasts are its files: each script is a new
process. What is known of a session's inputs is in its sandbox (in_sandbox/workspace.py)
and so it is the same for replicas, and after a restart.
"""

import hmac
import json
from collections.abc import Callable
from pathlib import Path

from caller import Caller
from code_api.cells import exec_cell
from code_api.execute import Exec
from code_api.reading import is_cat
from code_api.report import Report
from code_api.request import ExecRequest
from code_api.staging import staging_of
from config import Config
from sandboxes.files import Cut, write_files
from sandboxes.keeping import KeepingPool
from sandboxes.pool import Need
from sandboxes.sandbox import Sandbox, Unavailable

_WORKSPACE_PY = Path(__file__).parents[1] / "in_sandbox" / "workspace.py"
_WORKSPACE = _WORKSPACE_PY.read_text("ascii")
# No X-Session-Id has such a character, so none can name a code session.
_PURPOSE = "code session\0"
# LibreChat starts a session's sandbox with this, before the model needs it.
_PREWARM = b"true"
_LOST = (
    "What this session had kept in /mnt/data is gone, for its sandbox had ended. "
    "Files that this call names are there again."
)
_STILL_MISSING = "The inputs could not be put into the session's sandbox. Try again."


class CodeSessions:
    def __init__(self, config: Config, pool: KeepingPool) -> None:
        self._config = config
        self._pool = pool

    def run(self, request: ExecRequest, report: Report, caller: Caller) -> None:
        """Run an exec of a session, once the calls before it have ended.

        Raises Full and Unavailable."""
        mark = _mark(request.session_hint, self._config.e2b_api_key)
        # Its own time begins after this: what it waited costs the session nothing.
        sessions = self._pool.sessions
        with sessions.turn(mark, self._config.run_timeout_s, caller):
            work = _SessionExec(request, report, is_known=sessions.has_run(mark))
            note = sessions.unread_note(mark)
            try:
                self._pool.use(work.run_in, Need(work.limit_s, mark, caller), {})
            finally:
                if work.has_lost:
                    note = _LOST
                if note and not caller.is_gone and _can_be_told(request, report):
                    report.notes.append(note)
                    note = ""
                if work.has_run or note:
                    sessions.note_run(mark, note)


def _mark(hint: str, key: str) -> str:
    """A keyed hash of the hint, by which E2B finds the session's sandbox."""
    return hmac.new(key.encode(), (_PURPOSE + hint).encode(), "sha256").hexdigest()


def _can_be_told(request: ExecRequest, report: Report) -> bool:
    """Whether somebody reads stderr, and nobody takes it for a failure.

    LibreChat's helpers do, where stdout is empty: of them only `cat` has such a
    success."""
    if request.code.strip() == _PREWARM and not request.inputs:
        return False
    return not is_cat(request) or bool(report.streams["stdout"].size_bytes())


class _SessionExec(Exec):
    """An exec in a sandbox that may have run others of its session."""

    def __init__(self, request: ExecRequest, report: Report, is_known: bool) -> None:
        """`is_known`: the session has run here before."""
        super().__init__(request, report)
        self._is_known = is_known
        self.has_lost = False  # a sandbox, with what it had kept
        self.has_run = False  # in a sandbox, be it without success

    def run_in(self, sandbox: Sandbox) -> None:
        """As `Exec.run_in`. What is not small is carried only if it is not there."""
        is_new = not sandbox.has_run
        if is_new and self._is_known:
            self.has_lost = True
        try:
            self._run(sandbox, lambda name: is_new)
            if self._report.needed:
                needed = {*self._report.needed}
                self._report.needed.clear()
                self._report.notes.clear()  # the second cell reports them again
                self._run(sandbox, needed.__contains__)
            if self._report.needed:
                raise Unavailable(_STILL_MISSING)
        finally:
            self.has_run = sandbox.has_run
        self._finish(sandbox)

    def _run(self, sandbox: Sandbox, is_wanted: Callable[[str], bool]) -> None:
        """Run the cell, with the inputs that are wanted. It may report others."""
        staging = staging_of(self._request, is_wanted)
        try:
            write_files(sandbox, staging.files, self._left_s())
        except Cut:
            # In this sandbox, for another one would not have what this one has.
            staging = staging_of(self._request, is_wanted)
            write_files(sandbox, staging.files, self._left_s())
        inputs = self._request.inputs.items()
        about = {
            "refs": {name: stored.id for name, stored in inputs},
            "read_only": [name for name, stored in inputs if stored.read_only],
            "left_out": staging.left_out,
            "secret": self._request.id_secret,
        }
        lines = f"exec({_WORKSPACE!r}, program.__dict__)\n"
        lines += "the_exec.workspace = program.Workspace(program.DATA, "
        lines += f"program.json.loads({json.dumps(about)!r}))\n"
        self._run_cell(sandbox, exec_cell(self._request, staging, lines))
