"""All of the code API but its HTTP: the one thing of it that proxy.py imports."""

from typing import IO, Any

from code_api.execute import run_exec
from code_api.large_body import parse_large
from code_api.reply import reply_body
from code_api.report import Report
from code_api.request import ExecRequest, parse_exec
from code_api.store import Store, StoreError
from code_api.sweeper import Sweeper
from code_api.upload import take_form
from config import MAX_BODY_BYTES, Config
from sandboxes.pool import Pool

# A script of 10 MiB twice in base64, which is how create_file sends a file.
MAX_EXEC_BODY_BYTES = 32 * 1024 * 1024

__all__ = ["MAX_EXEC_BODY_BYTES", "CodeApi", "StoreError", "fields_to_log"]

Fields = dict[str, Any]


class CodeApi:
    """LibreChat's code interpreter. Its methods raise what the rooms below them do."""

    def __init__(self, config: Config, pool: Pool) -> None:
        """`config.files_dir` is set."""
        assert config.files_dir  # noqa: S101 - proxy.py looked
        self.store = Store(config.files_dir)
        self._config = config
        self._pool = pool
        Sweeper(config.files_dir, config).start()

    def parse(self, body: bytearray) -> Any:
        """The JSON of an exec's body. Raises BadBody, ValueError or RecursionError."""
        return parse_large(body, MAX_BODY_BYTES)

    def request(self, fields: object) -> ExecRequest:
        """What an exec asks for. Raises BadRequest."""
        return parse_exec(fields, self.store, self._config.run_timeout_s)

    def run(self, request: ExecRequest) -> Report:
        """Run it. Raises Full. The report is to be closed once its reply is sent."""
        return run_exec(request, self._pool, self.store, self._config)

    def reply(self, report: Report) -> Fields:
        """The reply's body. Raises StoreError."""
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
