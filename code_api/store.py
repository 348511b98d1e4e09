"""The file store: FILES_DIR holds a folder for each session, named by its id.

A session has the files of one upload, batch or exec, named by their ids, and an index
of them. It is written under a hidden name and renamed when it is whole, so only whole
sessions can be found. Several processes, and replicas, may share FILES_DIR.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from werkzeug.exceptions import NotFound

from code_api.names import is_id, new_id
from config import log

_INDEX = "index.json"
# A folder whose name has this before the id is a session being written or removed.
HIDDEN = "."
_CHECK = "This service could not store the files. Its operator has to check FILES_DIR"


class NotStored(NotFound):
    """There is no such session or file, or not any more."""

    description = "There is no such file, or not any more."

    def __str__(self) -> str:
        return "it is not there any more"


class StoreError(Exception):
    """FILES_DIR could not be written; the message is for the caller."""


@contextmanager
def as_store_error() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        log.error("FILES_DIR could not be written: %s", exc.strerror)
        raise StoreError(f"{_CHECK} ({exc.strerror}).") from exc


@dataclass(frozen=True)
class StoredFile:
    path: Path
    size: int  # bytes
    read_only: bool
    modified_at: float  # seconds since 1970
    original_name: str = ""  # the one that a script gave it; "" of an upload

    @property
    def id(self) -> str:
        return self.path.name

    def open(self) -> BinaryIO:
        """Open the file: from then on it can be read to its end. Raises NotStored."""
        try:
            return self.path.open("rb")
        except OSError:
            raise NotStored from None

    def is_there(self) -> bool:
        return self.path.is_file()

    def last_modified(self) -> str:
        """ISO 8601, UTC."""
        modified_at = datetime.fromtimestamp(self.modified_at, UTC)
        text = modified_at.isoformat(timespec="milliseconds")
        return text.replace("+00:00", "Z")


class NewFile:
    """A file of a session that is being written. Its methods raise StoreError."""

    def __init__(
        self, folder: Path, name: str, original_name: str, file_id: str
    ) -> None:
        self.id = file_id
        self.name = name
        self.original_name = original_name
        self.size = 0  # bytes
        self._path = folder / self.id
        self.write(b"")

    def write(self, data: bytes) -> None:
        """Append to the file, which is open only meanwhile."""
        with self.opened() as write:
            write(data)

    @contextmanager
    def opened(self) -> Iterator[Callable[[bytes], None]]:
        """A function that appends to the file, for what comes in many pieces."""
        with as_store_error():
            file = self._path.open("ab")

        @as_store_error()
        def write(data: bytes) -> None:
            file.write(data)
            self.size += len(data)

        try:
            yield write
        finally:
            with as_store_error():
                file.close()


class NewSession:
    """A session that is being written. Its methods raise StoreError."""

    def __init__(self, root: Path) -> None:
        self.id = new_id()
        self.hidden_folder = root / f"{HIDDEN}{self.id}"
        self._folder = root / self.id

    @as_store_error()
    def new_file(
        self, name: str, original_name: str = "", file_id: str = ""
    ) -> NewFile:
        """A file with this id; without one it has a new id."""
        self.hidden_folder.mkdir(mode=0o700, exist_ok=True)
        return NewFile(self.hidden_folder, name, original_name, file_id or new_id())

    @as_store_error()
    def publish(self, files: list[NewFile], read_only: bool = False) -> None:
        """Let these files be found, if there are any. All others are removed."""
        if not files:
            return
        sizes = {file.id: file.size for file in files}
        for path in self.hidden_folder.iterdir():
            if path.name not in sizes:
                path.unlink()
        names = {file.id: file.original_name for file in files if file.original_name}
        index = {"sizes": sizes, "names": names, "read_only": read_only}
        path = self.hidden_folder / _INDEX
        path.write_text(json.dumps(index), "utf-8")
        self.hidden_folder.rename(self._folder)


class Store:
    """The sessions below FILES_DIR. A folder that another user owns is none of them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._owner = owner_of_new_files(root)

    @contextmanager
    def new_session(self) -> Iterator[NewSession]:
        """A session to fill. Nothing of it stays unless it is published."""
        session = NewSession(self._root)
        try:
            yield session
        finally:
            shutil.rmtree(session.hidden_folder, ignore_errors=True)

    def find(self, session_id: object, file_id: object) -> StoredFile:
        """Find a file. Raises NotStored, also if the file is not whole."""
        if not is_id(session_id) or not is_id(file_id):
            raise NotStored
        folder = self._root / str(session_id)
        path = folder / str(file_id)
        try:
            owner = folder.stat().st_uid
            index = json.loads((folder / _INDEX).read_bytes())
            size = index["sizes"][file_id]
            read_only = index["read_only"]
            # A session of an earlier version has no names.
            original_name = index.get("names", {}).get(file_id, "")
            status = path.stat()
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise NotStored from None
        if owner != self._owner or status.st_size != size:
            raise NotStored
        return StoredFile(path, size, read_only, status.st_mtime, original_name)

    @as_store_error()
    def delete(self, session_id: str, file_id: str) -> None:
        """Delete a file, and with the last one its session.

        Raises NotStored, StoreError."""
        path = self.find(session_id, file_id).path
        folder = path.parent
        with suppress(FileNotFoundError):  # the session is evicted meanwhile
            path.unlink()
            left = list(folder.iterdir())
            if left == [folder / _INDEX]:
                remove_session(folder)


def owner_of_new_files(root: Path) -> int:
    """The user who owns the files that this process makes there. Raises OSError.

    It need not be the process's own: a network share often gives all files to one user.
    """
    with TemporaryFile(dir=root) as file:
        return os.fstat(file.fileno()).st_uid


def remove_session(folder: Path) -> None:
    """Remove a session, which can no longer be found before its first file is removed.

    Raises OSError, but not if another process does the same meanwhile."""
    with suppress(FileNotFoundError):
        if not folder.name.startswith(HIDDEN):
            folder = folder.rename(folder.with_name(f"{HIDDEN}{new_id()}"))
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        folder.rmdir()
