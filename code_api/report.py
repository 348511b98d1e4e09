"""What a sandbox reports of an exec, line by line as it arrives; it may lie."""

import json
import zlib
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from code_api.cells import (
    MAX_FILES,
    MAX_WRITTEN,
    STDERR_LIMIT_BYTES,
    STDOUT_LIMIT_BYTES,
)
from code_api.names import name_problem, printable
from code_api.request import MAX_INPUTS
from code_api.store import NewSession
from config import MAX_CARRIED_BYTES, log
from run import Clipped

# The longest that in_sandbox.py writes: 32 KiB of control characters, six bytes each.
_MAX_LINE_CHARS = 256 * 1024
_MAX_CHUNK_BYTES = 96 * 1024
# Of a file, for one cell: the kernel keeps what it prints.
_PIECE_BYTES = 8 * 1024 * 1024
_MAX_NOTE_CHARS = 500


class BadReport(ValueError):
    """This is no report of ours."""


@dataclass
class Output:
    """A file that the script wrote and that is wanted."""

    name: str
    size_bytes: int
    file_id: str = ""
    received_bytes: int = 0


class Text:
    """One of the script's streams."""

    def __init__(self, limit_chars: int) -> None:
        self._pieces: list[str] = []
        self._left_chars = limit_chars

    def add(self, text: str) -> None:
        self._left_chars -= len(text)
        if self._left_chars < 0:
            raise BadReport("more output than was asked for")
        self._pieces.append(text)

    def text(self) -> str:
        return "".join(self._pieces)


class Report(Clipped):
    """Stands where a run's stdout is, and takes the report's lines from it.

    Files go to their place in the session as they come. After a line that is wrong
    nothing more is taken; `problem` says what it was.
    """

    def __init__(self, session: NewSession, max_file_bytes: int) -> None:
        self.problem = ""
        self.outcome = ""  # "ok", "error" or "timeout", once the script has ended
        self.notes: list[str] = []  # lines for stderr
        self.stdout = Text(STDOUT_LIMIT_BYTES)
        self.stderr = Text(STDERR_LIMIT_BYTES)
        self.deleted: list[str] = []
        self.outputs: dict[int, Output] = {}  # by number, among all that were written
        self.left_out: list[tuple[str, str]] = []  # name, reason
        self.written_files = 0  # as the sandbox counts them
        self._session = session
        self._max_file_bytes = max_file_bytes
        self._line = ""
        self._named = 0
        self.wanted_bytes = 0
        self._file: BinaryIO | None = None
        self._current: Output | None = None  # whose file it is
        super().__init__(0)  # adds an empty text

    def add(self, text: str) -> None:
        *lines, self._line = (self._line + text).split("\n")
        try:
            for line in lines:
                # Anything else is the notebook's own.
                if line.startswith("{") and not self.problem:
                    self._take(json.loads(line))
            if len(self._line) > _MAX_LINE_CHARS:
                raise BadReport("a line without an end")
        except OSError as exc:
            log.error("FILES_DIR could not be written: %s", exc.strerror)
            self.problem = f"this service could not store the files ({exc.strerror})"
        except (ValueError, RecursionError, zlib.error) as exc:
            self.problem = f"the sandbox's report is wrong ({type(exc).__name__})"
        if self.problem:
            self._line = ""

    def _take(self, line: dict[str, Any]) -> None:
        match line:
            case {"stdout": str(text)}:
                self.stdout.add(text)
            case {"stderr": str(text)}:
                self.stderr.add(text)
            case {"note": str(text)} if len(self.notes) < MAX_INPUTS:
                self.notes.append(text[:_MAX_NOTE_CHARS])
            case {"ended": "ok" | "error" | "timeout" as outcome} if not self.outcome:
                self.outcome = outcome
            case {"deleted": str(name)} if len(self.deleted) < MAX_INPUTS:
                self.deleted.append(name)
            case {"written": str(name), "size": int(size)} if size >= 0:
                self._take_name(name, size)
            case {"written_files": int(count)}:
                self.written_files = max(0, count)
            case {"of": int(number), "packed": str(packed)}:
                self._take_chunk(number, packed)
            case _:
                raise BadReport(line)

    def _take_name(self, name: str, size: int) -> None:
        number = self._named
        self._named += 1
        if number >= MAX_WRITTEN:
            raise BadReport("too many names")
        problem = name_problem(name)
        if size > self._max_file_bytes:
            problem = f"it is larger than {self._max_file_bytes:,} bytes"
        elif self.wanted_bytes + size > MAX_CARRIED_BYTES:
            problem = f"all files together are larger than {MAX_CARRIED_BYTES:,} bytes"
        elif len(self.outputs) >= MAX_FILES:
            problem = f"there are more than {MAX_FILES} files"
        if problem:
            self.left_out.append((printable(name), problem))
            return
        self.wanted_bytes += size
        self.outputs[number] = Output(name, size)

    def _take_chunk(self, number: int, packed: str) -> None:
        """Write the next bytes of a file; the files come one after another."""
        output = self.outputs.get(number)
        if not output:
            return
        if output is not self._current:
            self._open(output)
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(b64decode(packed, validate=True), _MAX_CHUNK_BYTES)
        output.received_bytes += len(data)
        if not unpacker.eof or output.received_bytes > output.size_bytes:
            raise BadReport("other bytes than the file has")
        assert self._file  # noqa: S101 - opened above
        self._file.write(data)

    def _open(self, output: Output) -> None:
        if output.file_id:
            raise BadReport("a file that has ended")
        self.close()
        self._current = output
        output.file_id, self._file = self._session.create_file()

    def close(self) -> None:
        if self._file:
            self._file.close()

    def pieces(self) -> Iterator[tuple[int, int, int]]:
        """Pieces to ask for: (number, start, length), in bytes."""
        for number, output in self.outputs.items():
            for start in range(output.received_bytes, output.size_bytes, _PIECE_BYTES):
                length = min(_PIECE_BYTES, output.size_bytes - start)
                yield number, start, length

    def finish(self) -> list[Output]:
        """Keep in the session, and return, what is whole; the rest is left out."""
        whole = []
        for output in self.outputs.values():
            if not output.size_bytes:
                self._open(output)
            if output.received_bytes == output.size_bytes:
                whole.append(output)
            else:
                self.left_out.append((output.name, "it did not arrive whole"))
        self.close()
        for output in whole:
            self._session.keep(output.file_id, output.name)
        return whole
