"""A sandbox's report on an exec, read line by line as it arrives. It may lie."""

import json
import zlib
from base64 import b64decode
from codecs import getincrementaldecoder
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from code_api.limits import CHUNK_BYTES, MAX_FILES, OUTPUT_BYTES, PIPE_BYTES
from code_api.names import (
    display_problem,
    escaped,
    id_of_output,
    name_problem,
    printable,
)
from code_api.output import Output
from code_api.request import MAX_ENTRIES, ExecRequest
from code_api.store import NewFile, NewSession, StoreError
from config import MAX_CARRIED_BYTES
from texts.clipped import Clipped

# The runner's longest line is shorter: 32 KiB of control characters, six bytes each.
_MAX_LINE_CHARS = 256 * 1024
_MAX_NOTES = 2 * MAX_ENTRIES  # one for each input, and a few more
_MAX_NOTE_CHARS = 500
# A stream may have this many times more bytes in the reply than the runner passes on.
# So all its characters fit, but those that JSON escapes with more than a backslash.
_REPLY_FACTOR = 2
# How many of the files that are left out are named; the others are only counted.
_MAX_LEFT_OUT = 50
# More files than a sandbox has, and more bytes than any file.
_MAX_COUNT = 10**19


@dataclass
class Written:
    """A file that the script wrote and that is wanted."""

    size_bytes: int
    file: NewFile  # the bytes that have arrived

    def check(self, data: bytes) -> None:
        """Raises ValueError if these are more bytes than are still to come."""
        if self.file.size + len(data) > self.size_bytes:
            raise ValueError("more bytes than the file has")


class Report(Clipped):
    """Takes the place of a run's stdout, and reads the report's lines from it.

    Files go to their place in the session as they come. After a wrong line no more are
    read; `problem` says what was wrong.
    """

    def __init__(
        self,
        request: ExecRequest,
        session: NewSession,
        max_file_bytes: int,
        folder: Path,
    ) -> None:
        """`folder`: where long output lies until it is sent."""
        self.problem = ""
        self.outcome = "unavailable"  # until the script ended: "ok", "error", "timeout"
        self.streams = {
            name: Output(folder, _REPLY_FACTOR * limit_bytes)
            for name, limit_bytes in OUTPUT_BYTES.items()
        }
        self.input_notes = request.notes  # lines for stderr; more come while it runs
        self.notes: list[str] = []  # lines for stderr, after those
        self.deleted: set[str] = set()  # inputs
        self.written_files = 0  # as the sandbox counts them
        self.left_out: list[str] = []  # lines for stderr
        self.delivered: list[NewFile] = []
        self.session_id = session.id
        self.needed: list[str] = []  # inputs without which the script was not run
        self._inputs = request.inputs
        self._id_secret = request.id_secret
        self._session = session
        self._max_file_bytes = max_file_bytes
        self._outputs: dict[str, Written] = {}  # by name
        self._line = ""
        super().__init__(limit=0)

    def add(self, text: str) -> None:
        if self.problem:
            return
        text = self._line + text
        *lines, self._line = text.split("\n")
        try:
            for line in lines:
                # Any other line is the notebook's own.
                if line.startswith("{"):
                    self._take(json.loads(line))
            if len(self._line) > _MAX_LINE_CHARS:
                raise ValueError("a line without an end")
        except StoreError as exc:
            self.problem = str(exc)
        except (ValueError, RecursionError, zlib.error) as exc:
            kind = type(exc).__name__
            self.problem = f"the sandbox's report is wrong ({kind})"

    def take_file_as_output(self, file: BinaryIO) -> None:
        """Do as a script that prints a file and nothing else. Raises StoreError."""
        decoder = getincrementaldecoder("utf-8")("replace")
        while data := file.read(PIPE_BYTES):
            self._take_text("stdout", decoder.decode(data))
        self._take_text("stdout", decoder.decode(b"", final=True))
        self._take_end("ok")

    def _take(self, line: dict[str, Any]) -> None:
        match line:
            case {"stdout": str(text)}:
                self._take_text("stdout", text)
            case {"stderr": str(text)}:
                self._take_text("stderr", text)
            case {"note": str(text)}:
                self._take_note(escaped(text[:_MAX_NOTE_CHARS]))
            case {"cache": str(name), "files": count} if is_count(count):
                files = "file was" if count == 1 else "files were"
                why = "caches and the like do not come back"
                self._take_note(f"{printable(name)}: {count:,} {files} left out: {why}")
            case {"stays": str(name), "files": count} if is_count(count):
                where = f"{printable(name)}/: {count:,} files"
                self._take_note(f"{where} stay in /mnt/data and do not come back")
            case {"needed": str(name)} if name in self._inputs:
                self.needed.append(name)
            case {"ended": "ok" | "error" | "timeout" as outcome}:
                self._take_end(outcome)
            case {"deleted": str(name)}:
                self._take_deleted(name)
            case {"written_files": count} if is_count(count):
                self.written_files = count
            case {"written": str(name), "size": size} if is_count(size):
                self._take_name(name, size)
            case {"of": str(name), "packed": str(packed)}:
                self._take_chunk(name, packed)
            case _:
                raise ValueError("no line of a report")

    def _take_text(self, name: str, text: str) -> None:
        output = self.streams[name]
        output.add(text)
        # A byte makes one character at most.
        if output.chars > OUTPUT_BYTES[name]:
            raise ValueError("more output than the script's runner passes on")

    def _take_end(self, outcome: str) -> None:
        if self.outcome != "unavailable":
            raise ValueError("a second end")
        self.outcome = outcome

    def _take_note(self, note: str) -> None:
        if len(self.notes) >= _MAX_NOTES:
            raise ValueError("notes without an end")
        self.notes.append(note)

    def _take_deleted(self, name: str) -> None:
        """Only of an input does anybody need to know that it was deleted."""
        stored = self._inputs.get(name)
        if name in self._outputs:
            raise ValueError("a file that was written")
        if stored and stored.read_only:
            raise ValueError("a read-only input is never deleted")
        if stored:
            self.deleted.add(name)

    def _take_name(self, name: str, size: int) -> None:
        if name in self._outputs or name in self.deleted:
            raise ValueError("a name twice")
        stored = self._inputs.get(name)
        if stored and stored.read_only:
            raise ValueError("a read-only input is never written")
        problem = name_problem(name)
        if not stored:  # else LibreChat has that name already
            problem = problem or display_problem(name)
        problem = problem or self._size_problem(size)
        if problem:
            self._leave_out(name, problem)
            return
        # LibreChat may have changed an input's name: that of the script stays.
        original_name = (stored and stored.original_name) or name
        file_id = self._id_secret and id_of_output(self._id_secret, name)
        file = self._session.new_file(name, original_name, file_id)
        self._outputs[name] = Written(size, file)

    def _size_problem(self, size: int) -> str:
        if size > self._max_file_bytes:
            return f"it is larger than {self._max_file_bytes:,} bytes"
        total_bytes = self.wanted_bytes() + size
        if total_bytes > MAX_CARRIED_BYTES:
            return f"all files together are larger than {MAX_CARRIED_BYTES:,} bytes"
        if len(self._outputs) >= MAX_FILES:
            return f"there are more than {MAX_FILES} files"
        return ""

    def _leave_out(self, name: str, why: str) -> None:
        if len(self.left_out) < _MAX_LEFT_OUT:
            self.left_out.append(f"file {printable(name)} was left out: {why}")

    def _take_chunk(self, name: str, packed: str) -> None:
        """Write the next bytes of a file; those of one that is left out are dropped."""
        output = self._outputs.get(name)
        if not output:
            return
        compressed = b64decode(packed, validate=True)
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(compressed, CHUNK_BYTES)
        if not unpacker.eof:
            raise ValueError("a chunk that is too large, or cut")
        output.check(data)
        output.file.write(data)

    def wanted_bytes(self) -> int:
        return sum(output.size_bytes for output in self._outputs.values())

    def to_fetch(self) -> dict[str, Written]:
        """The files of which nothing has come yet, by their names."""
        return {
            name: output
            for name, output in self._outputs.items()
            if output.size_bytes and not output.file.size
        }

    def publish(self) -> None:
        """Publish the files that are whole; the rest is left out. Raises StoreError."""
        whole = []
        for name, output in self._outputs.items():
            if output.file.size == output.size_bytes:
                whole.append(output.file)
            else:
                self._leave_out(name, "it did not arrive whole")
        self._session.publish(whole)
        self.delivered = whole

    def close(self) -> None:
        """To be called after the reply was sent."""
        for output in self.streams.values():
            output.close()


def is_count(value: object) -> bool:
    """Whether it is a number of files or bytes; a bool, which is an int, is none."""
    return type(value) is int and 0 <= value < _MAX_COUNT
