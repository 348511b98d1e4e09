"""POST /v1/upload and /v1/upload/batch put the files of a form into the store."""

from typing import IO, Any, cast

from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header
from werkzeug.wsgi import LimitedStream

from code_api.names import name_problem
from code_api.store import NewFile, NewSession, Store, StoreError
from config import MAX_CARRIED_BYTES, Config
from metrics import UPLOAD_BYTES, UPLOADS

# How much of a part the parser may hold: well above the 64 KiB that it reads at once.
_PARSER_BYTES = 1024 * 1024
_MAX_PARTS = 1000
_FORM = "multipart/form-data"
_WRONG_TYPE = f"Send the files as Content-Type: {_FORM}."


class _FormStream(LimitedStream):
    """A form's bytes. Raises RequestEntityTooLarge if they are more than `limit`."""

    def on_exhausted(self) -> None:
        text = f"The form was not taken: it is larger than {self.limit:,} bytes."
        raise RequestEntityTooLarge(text)


class _Part:
    """A file of the form, which the parser writes to its place as it comes.

    A file that has an error is read to its end, and nothing of it is kept.
    """

    def __init__(self, file: NewFile, limit_bytes: int) -> None:
        self.file = file
        self.error: HTTPException | None = None
        self._limit_bytes = limit_bytes
        problem = name_problem(file.name)
        if problem:
            self.error = BadRequest(f"The file was not taken: {problem}.")

    def write(self, data: bytes) -> None:
        if self.file.size + len(data) > self._limit_bytes:
            text = f"it is larger than {self._limit_bytes:,} bytes"
            self.error = RequestEntityTooLarge(f"The file was not taken: {text}.")
        if not self.error:
            self.file.write(data)

    def seek(self, _offset: int) -> None:
        """Does nothing. The parser calls it when the part has ended."""

    def entry(self) -> dict[str, str]:
        """The reply's entry for this file."""
        if self.error:
            return {
                "status": "error",
                "filename": self.file.name,
                "error": str(self.error.description),
            }
        return {"status": "success", "fileId": self.file.id, "filename": self.file.name}


def take_form(
    store: Store, config: Config, stream: IO[bytes], content_type: str, is_batch: bool
) -> tuple[dict[str, Any], int]:
    """Store the files of a form; returns the reply, and how many bytes are kept.

    In a batch, files that are refused are counted by the reply's `failed`, each has its
    reason in `files`, and the others are kept. Otherwise the first refusal is raised:
    BadRequest or RequestEntityTooLarge. A bad form raises these, too, and the store
    raises StoreError.
    """
    with store.new_session() as session:
        form, parts = _parse(session, config, stream, content_type)
        errors = [part.error for part in parts if part.error]
        UPLOADS.labels("refused").inc(len(errors))
        if errors and not is_batch:
            raise errors[0]
        kept = [part.file for part in parts if not part.error]
        session.publish(kept, read_only=form.get("read_only") == "true")
    kept_bytes = sum(file.size for file in kept)
    UPLOADS.labels("kept").inc(len(kept))
    UPLOAD_BYTES.inc(kept_bytes)
    message = "partial_success" if errors else "success"
    reply = {
        "message": message if kept else "error",
        "storage_session_id": session.id,
        "session_id": session.id,  # its name up to LibreChat 0.8.5
        "files": [part.entry() for part in parts],
        "failed": len(errors),
    }
    return reply, kept_bytes


def _parse(
    session: NewSession, config: Config, stream: IO[bytes], content_type: str
) -> tuple[MultiDict[str, str], list[_Part]]:
    mimetype, options = parse_options_header(content_type)
    # The parser would read a form of another type whole into memory.
    if mimetype != _FORM:
        raise BadRequest(_WRONG_TYPE)
    parts: list[_Part] = []

    def open_part(filename: str | None, **_others: object) -> _Part:
        file = session.new_file(filename or "")
        part = _Part(file, config.max_file_bytes)
        parts.append(part)
        return part

    parser = FormDataParser(
        stream_factory=cast(Any, open_part),
        max_form_memory_size=_PARSER_BYTES,
        max_form_parts=_MAX_PARTS,
        silent=False,
    )
    # No run could be given more files, and a session cannot be evicted while it is
    # written. A form's own text needs less than the parser may hold.
    max_bytes = min(MAX_CARRIED_BYTES, config.files_total_bytes) + _PARSER_BYTES
    limited = _FormStream(stream, max_bytes, is_max=True)
    try:
        _, form, _ = parser.parse(cast(Any, limited), mimetype, None, options)
    except (HTTPException, StoreError):
        raise
    except Exception as exc:  # gunicorn's for malformed chunks, among others
        reason = f"{type(exc).__name__}: {exc}"
        text = f"The body is no multipart form that can be read ({reason})."
        raise BadRequest(text) from None
    if not parts:
        raise BadRequest("The form holds no file: send it as the part `file`.")
    return form, parts
