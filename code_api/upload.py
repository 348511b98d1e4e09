"""POST /v1/upload and /v1/upload/batch: a multipart form in, its files into the store."""

from typing import IO, Any, cast

from werkzeug.datastructures import MultiDict
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

from code_api.names import name_problem, new_id
from code_api.store import NewSession, Store

# What the parser may hold of a part: well above the 64 KiB that it reads at once.
_PARSER_BYTES = 1024 * 1024
_MAX_PARTS = 1000


class BadUpload(ValueError):
    """The form cannot be taken; the message is for the caller."""


class _Body:
    """The request's body: whatever goes wrong while it is read is the sender's."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except Exception as exc:  # what gunicorn raises for malformed chunks, too
            text = f"The body could not be read to its end ({type(exc).__name__})."
            raise BadUpload(text) from None


class _Part:
    """A file of the form, which the parser writes, as it comes, to its place.

    One that has a problem is read to its end, and nothing of it is kept.
    """

    def __init__(self, session: NewSession, name: str, limit_bytes: int) -> None:
        self.file_id = new_id()
        self.name = name
        self.problem = name_problem(name)
        self.code = "invalid_name"
        self.size_bytes = 0
        self._session = session
        self._limit_bytes = limit_bytes
        session.append(self.file_id, b"")

    def write(self, data: bytes) -> None:
        self.size_bytes += len(data)
        if self.size_bytes > self._limit_bytes:
            self.code = "file_too_large"
            self.problem = f"it is larger than {self._limit_bytes:,} bytes"
        if not self.problem:
            self._session.append(self.file_id, data)

    def seek(self, _offset: int) -> None:
        """What the parser calls last; nothing is open."""

    def settle(self, read_only: bool) -> dict[str, str]:
        """Keep it in the session, or not; returns what the reply says of it."""
        if self.problem:
            return {
                "status": "error",
                "code": self.code,
                "filename": self.name,
                "error": f"The file was not taken: {self.problem}.",
            }
        self._session.keep(self.file_id, self.name, read_only)
        return {
            "status": "success",
            "fileId": self.file_id,
            "filename": self.name,
        }


def take_form(
    store: Store, stream: IO[bytes], content_type: str, max_file_bytes: int
) -> tuple[dict[str, Any], int]:
    """Store the files of a form; returns the reply, and how many bytes they had.

    Its `failed` counts files that were refused, each with the reason in `files`; the
    others are kept. Raises BadUpload, StoreError, werkzeug's RequestEntityTooLarge.
    """
    with store.new_session() as session:
        form, parts = _parse(session, stream, content_type, max_file_bytes)
        read_only = form.get("read_only") == "true"
        entries = [part.settle(read_only) for part in parts]
        failed = len(entries) - len(session.files)
        message = "partial_success" if failed else "success"
        if session.files:
            session.publish()
        else:
            message = "error"
    reply = {
        "message": message,
        "storage_session_id": session.id,
        "session_id": session.id,  # its name up to LibreChat 0.8.5
        "files": entries,
        "failed": failed,
    }
    return reply, sum(part.size_bytes for part in parts)


def _parse(
    session: NewSession, stream: IO[bytes], content_type: str, max_file_bytes: int
) -> tuple[MultiDict[str, str], list[_Part]]:
    parts: list[_Part] = []

    def open_part(
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        parts.append(_Part(session, filename or "", max_file_bytes))
        return cast(IO[bytes], parts[-1])

    parser = FormDataParser(
        stream_factory=open_part,
        max_form_memory_size=_PARSER_BYTES,
        max_form_parts=_MAX_PARTS,
        silent=False,
    )
    mimetype, options = parse_options_header(content_type)
    body = cast(IO[bytes], _Body(stream))
    try:
        _, form, _ = parser.parse(body, mimetype, None, options)
    except BadUpload:
        raise
    except ValueError:
        raise BadUpload("The body is no multipart form that can be read.") from None
    if not parts:
        raise BadUpload("The form holds no file: send it as the part `file`.")
    return form, parts
