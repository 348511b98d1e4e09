"""What a sandbox reports of an exec, line by line as it arrives; it may lie."""

import json
import zlib
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from code_api.cells import MAX_FILES, STDERR_LIMIT_BYTES, STDOUT_LIMIT_BYTES
from code_api.names import name_problem, new_id, printable
from code_api.store import NewSession
from config import MAX_CARRIED_BYTES, log
from run import Clipped

# The script's output, and as much again for names and notes as for stderr.
_MAX_CHARS = STDOUT_LIMIT_BYTES + 2 * STDERR_LIMIT_BYTES
# What an entry of a list takes beside its text, and more.
_ENTRY_CHARS = 100
# The longest that in_sandbox.py writes: 32 KiB of control characters, six bytes each.
_MAX_LINE_CHARS = 256 * 1024
_MAX_CHUNK_BYTES = 96 * 1024
# Of a file, for one cell: the kernel keeps what it prints.
_PIECE_BYTES = 8 * 1024 * 1024


class BadReport(ValueError):
    """This is no report of ours."""


@dataclass
class Output:
    """A file that the script wrote and that is wanted."""

    name: str
    size_bytes: int
    file_id: str = field(default_factory=new_id)
    received_bytes: int = 0


class Report(Clipped):
    """Stands where a run's stdout is, and takes the report's lines from it.

    Files go to their place in the session as they come. After a line that is wrong
    nothing more is taken; `problem` says what it was.
    """

    def __init__(self, session: NewSession, max_file_bytes: int) -> None:
        self.problem = ""
        self.outcome = ""  # "ok", "error" or "timeout", once the script has ended
        self.stdout = StringIO()
        self.stderr = StringIO()
        self.notes: list[str] = []  # lines for stderr
        self.deleted: list[str] = []
        self.outputs: dict[int, Output] = {}  # by number, among all that were written
        self.left_out: list[tuple[str, str]] = []  # name, reason
        self.written_files = 0  # as the sandbox counts them
        self.wanted_bytes = 0
        self._session = session
        self._max_file_bytes = max_file_bytes
        self._line = ""
        self._left_chars = _MAX_CHARS
        super().__init__(0)  # adds an empty text

    def add(self, text: str) -> None:
        text = self._line + text
        *lines, self._line = text.split("\n")
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
                self.stdout.write(self._counted(text))
            case {"stderr": str(text)}:
                self.stderr.write(self._counted(text))
            case {"note": str(text)}:
                self.notes.append(self._counted(text, _ENTRY_CHARS))
            case {"deleted": str(name)}:
                self.deleted.append(self._counted(name, _ENTRY_CHARS))
            case {"ended": "ok" | "error" | "timeout" as outcome} if not self.outcome:
                self.outcome = outcome
            case {"written": str(name), "size": int(size)}:
                self._counted(name, _ENTRY_CHARS)
                self._take_name(name, size)
            case {"written_files": int(count)}:
                self.written_files = count
            case {"of": int(number), "packed": str(packed)}:
                self._take_chunk(number, packed)
            case _:
                raise BadReport(line)

    def _counted(self, text: str, extra_chars: int = 0) -> str:
        """A text that is kept: all of them together are bounded."""
        self._left_chars -= len(text) + extra_chars
        if self._left_chars < 0:
            raise BadReport("more text than was asked for")
        return text

    def _take_name(self, name: str, size: int) -> None:
        if size < 0:
            raise BadReport("a size below 0")
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
        number = len(self.outputs) + len(self.left_out)
        output = Output(name, size)
        self.outputs[number] = output
        self.wanted_bytes += size
        self._session.append(output.file_id, b"")

    def _take_chunk(self, number: int, packed: str) -> None:
        """Write the next bytes of a file."""
        output = self.outputs.get(number)
        if not output:
            return
        packed_data = b64decode(packed, validate=True)
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(packed_data, _MAX_CHUNK_BYTES)
        output.received_bytes += len(data)
        if not unpacker.eof:
            raise BadReport("a chunk that is too large or cut")
        if output.received_bytes > output.size_bytes:
            raise BadReport("more bytes than the file has")
        self._session.append(output.file_id, data)

    def pieces(self) -> Iterator[tuple[int, int, int]]:
        """What to ask for, a cell each: (number, start, length), in bytes."""
        for number, output in self.outputs.items():
            start = output.received_bytes
            while start < output.size_bytes:
                length = min(_PIECE_BYTES, output.size_bytes - start)
                yield number, start, length
                start += length

    def finish(self) -> list[Output]:
        """Keep in the session, and return, what is whole; the rest is left out."""
        whole = []
        for output in self.outputs.values():
            if output.received_bytes < output.size_bytes:
                self.left_out.append((output.name, "it did not arrive whole"))
                continue
            self._session.keep(output.file_id, output.name)
            whole.append(output)
        return whole
