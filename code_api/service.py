"""The whole code API without its HTTP; proxy.py imports nothing else of it."""

from typing import IO, Any, cast

from caller import Caller
from code_api.execute import RunInSession, run_exec
from code_api.large_body import parse_large
from code_api.reply import add_notes, reply_body
from code_api.report import Report
from code_api.request import ExecRequest, parse_exec
from code_api.store import Store, StoreError
from code_api.sweeper import Sweeper
from code_api.upload import take_form
from config import MAX_BODY_BYTES, Config
from sandboxes.pool import Pool

__all__ = ["CodeApi", "StoreError", "fields_to_log"]

Fields = dict[str, Any]


class CodeApi:
    """LibreChat's code interpreter. Its methods raise what the called modules raise."""

    def __init__(self, config: Config, pool: Pool) -> None:
        """`config.files_dir` has to be set."""
        assert config.files_dir  # noqa: S101 - proxy.py has checked it
        self.store = Store(config.files_dir)
        self._config = config
        self._pool = pool
        self._run_in_session: RunInSession | None = None
        if config.session_idle_s:
            from code_api.stateful import CodeSessions
            from sandboxes.keeping import KeepingPool

            self._run_in_session = CodeSessions(config, cast(KeepingPool, pool)).run
        Sweeper(config.files_dir, config).start()

    def parse(self, body: bytearray) -> Any:
        """The value of an exec's body. Raises BadBody, ValueError or RecursionError."""
        return parse_large(body, MAX_BODY_BYTES)

    def request(self, fields: object) -> ExecRequest:
        """The request that an exec's fields describe. Raises BadRequest."""
        return parse_exec(fields, self.store, self._config.run_timeout_s)

    def run(self, request: ExecRequest, caller: Caller) -> Report:
        """Run an exec. Raises Full. Close the report once its reply is sent."""
        return run_exec(
            request, self._pool, self.store, self._config, caller, self._run_in_session
        )

    def reply(self, report: Report) -> Fields:
        """The reply's body. Raises StoreError."""
        add_notes(report)
        return reply_body(report)

    def upload(
        self, form: IO[bytes], content_type: str, is_batch: bool
    ) -> tuple[Fields, int]:
        """The reply to an upload, and the bytes that are kept; see `take_form`."""
        return take_form(self.store, self._config, form, content_type, is_batch)


def fields_to_log(request: ExecRequest, report: Report) -> Fields:
    return {
        "session_id": report.session_id,
        "language": request.language_name,
        "outcome": report.outcome,
        "files_in": len(request.inputs),
        "bytes_in": request.input_bytes(),
        "files_out": len(report.delivered),
        "bytes_out": sum(file.size for file in report.delivered),
    }
