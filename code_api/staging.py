"""Files that are put into the sandbox ahead of the cell that runs: those not small.

They go by E2B's file API, all in one request, into a folder beside /mnt/data that no
script can write to. The cell moves each to its place.
"""

import io
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, cast

from code_api.limits import CELL_INPUT_BYTES, CELL_SCRIPT_BYTES, DATA
from code_api.request import ExecRequest
from code_api.store import NotStored, StoredFile


@dataclass
class Staging:
    """Where in the sandbox the files of one exec lie until its cell runs."""

    # On the file system of DATA, or nothing could be moved there. A second service that
    # uses the same sandbox has another one.
    folder: str = field(default_factory=lambda: f"{DATA}-{secrets.token_hex(8)}")
    inputs: dict[str, str] = field(default_factory=dict)  # their paths, by their names
    # Names of those that are not to be carried, unless they turn out to be needed.
    left_out: list[str] = field(default_factory=list)
    script: str = ""  # its path; "" if it comes in the cell
    files: dict[str, IO[bytes]] = field(default_factory=dict)  # by their paths

    def add(self, file: IO[bytes]) -> str:
        path = f"{self.folder}/{len(self.files)}"
        self.files[path] = file
        return path


def staging_of(
    request: ExecRequest, is_wanted: Callable[[str], bool] = lambda name: True
) -> Staging:
    """What of an exec its cell does not carry; those of the inputs that are wanted.

    The smallest inputs come in the cell, which needs no further request. An input that
    is gone by now becomes a note."""
    staging = Staging()
    if len(request.code) > CELL_SCRIPT_BYTES:
        staging.script = staging.add(io.BytesIO(request.code))
    left_bytes = CELL_INPUT_BYTES
    by_size = sorted(request.inputs.items(), key=lambda item: item[1].size)
    for name, stored in by_size:
        left_bytes -= stored.size
        if left_bytes >= 0:
            continue
        if not is_wanted(name):
            staging.left_out.append(name)
        elif stored.is_there():
            staging.inputs[name] = staging.add(cast(IO[bytes], _StoredInput(stored)))
        else:
            request.drop(name, str(NotStored()))
    return staging


class _StoredInput(io.RawIOBase):
    """A stored file, open only while it is read: an exec may have 1,000 of them."""

    def __init__(self, stored: StoredFile) -> None:
        self._stored = stored
        self._position = 0
        self._file: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """The SDK's client does so before it reads, to find out the size."""
        starts = {os.SEEK_SET: 0, os.SEEK_END: self._stored.size}
        self._position = starts[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Raises NotStored if the file is gone before its first byte was read."""
        self._file = self._file or self._stored.open()
        self._file.seek(self._position)
        data = self._file.read(size)
        self._position += len(data)
        if not data:
            self.close()
        return data

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None
        super().close()
