"""A script's output, as it will go into the reply."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import SpooledTemporaryFile

from code_api.store import as_store_error
from json_body import to_json

# Output beyond this lies in a file without a name: a script may print 12 MiB, and each
# control character in it takes six bytes of JSON.
_IN_MEMORY_BYTES = 256 * 1024
_PIECE_BYTES = 64 * 1024


class Output:
    """One of a script's streams, as the JSON text that is sent, without its quotes."""

    prefix = ""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """The JSON text is cut where it would have more than `limit_bytes`."""
        self.missing_chars = 0
        self.chars = 0  # all that were added, also those that are missing
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._file = SpooledTemporaryFile(  # noqa: SIM115 - closed once it is sent
            _IN_MEMORY_BYTES, dir=str(folder)
        )
        self._ends_a_line = True

    def add(self, text: str) -> None:
        """Append a text, unless it is beyond the limit. Raises StoreError."""
        self.chars += len(text)
        data = to_json(text)[1:-1]
        if self.missing_chars or self._size_bytes + len(data) > self._limit_bytes:
            self.missing_chars += len(text)
        else:
            self._write(data, text)

    def add_lines(self, lines: list[str]) -> None:
        """Append lines of our own, whatever the limit. Raises StoreError."""
        text = "".join(f"{line}\n" for line in lines)
        if text and not self._ends_a_line:
            text = "\n" + text
        self._write(to_json(text)[1:-1], text)

    def _write(self, data: bytes, text: str) -> None:
        with as_store_error():
            self._file.write(data)
        self._size_bytes += len(data)
        if text:
            self._ends_a_line = text.endswith("\n")

    def size_bytes(self) -> int:
        return self._size_bytes

    def pieces(self) -> Iterator[bytes]:
        self._file.seek(0)
        while data := self._file.read(_PIECE_BYTES):
            yield data

    def close(self) -> None:
        self._file.close()
