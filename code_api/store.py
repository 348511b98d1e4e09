"""The file store: FILES_DIR holds one folder for each session, the session's id its name.

A session is what one upload, batch or exec brought: its files, named by their ids, and
an index of them. It is written under a hidden name and renamed when it is whole, so what
can be found is whole. Several processes, and replicas, may share FILES_DIR.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from code_api.names import is_id, new_id
from config import Config, log

_INDEX = "index.json"
# Not names of sessions: one that is being written, and one that is being removed.
_NEW = ".new-"
_OLD = ".old-"
# What nobody has written to for so long was left behind by a process that died: longer
# than any request may be silent.
_ABANDONED_AFTER_S = 3600
_SWEEP_EVERY_S = 60


class NotStored(Exception):
    """There is no such session or file, or not any more."""


class StoreError(Exception):
    """FILES_DIR could not be written; the message is for the caller."""


@dataclass(frozen=True)
class StoredFile:
    path: Path
    created: str  # ISO 8601, UTC
    name: str
    size: int  # bytes
    read_only: bool

    def open(self) -> BinaryIO:
        """Open it: from then on it can be read to its end. Raises NotStored."""
        try:
            return self.path.open("rb")
        except OSError:
            raise NotStored from None


class NewSession:
    """A session that is being written; see `Store.new_session`."""

    def __init__(self, folder: Path) -> None:
        self.id = new_id()
        self.files: dict[str, dict[str, object]] = {}
        self._folder = folder
        self._part = folder / f"{_NEW}{self.id}"
        self._part.mkdir(mode=0o700)

    def append(self, file_id: str, data: bytes) -> None:
        """Write the next bytes of a file; its first ones make it."""
        with (self._part / file_id).open("ab") as file:
            file.write(data)

    def keep(self, file_id: str, name: str, read_only: bool = False) -> None:
        """Take a file that was written into the session."""
        size = (self._part / file_id).stat().st_size
        self.files[file_id] = {"name": name, "size": size, "read_only": read_only}

    def publish(self) -> None:
        """From now on the files that were kept can be found; the others go."""
        for path in self._part.iterdir():
            if path.name not in self.files:
                path.unlink()
        index = json.dumps({"created": _now(), "files": self.files})
        (self._part / _INDEX).write_text(index, "utf-8")
        self._part.rename(self._folder / self.id)

    def remove_unless_published(self) -> None:
        shutil.rmtree(self._part, ignore_errors=True)


class Store:
    """The sessions below `config.files_dir`."""

    def __init__(self, folder: Path, config: Config) -> None:
        self._folder = folder
        self._ttl_s = config.files_ttl_hours * 3600
        self._total_bytes = config.files_total_bytes
        self._closing = threading.Event()

    @contextmanager
    def new_session(self) -> Iterator[NewSession]:
        """A session to fill and to publish; else nothing of it stays.

        Raises StoreError for every OSError in the block: they are of its files.
        """
        session = None
        try:
            session = NewSession(self._folder)
            yield session
        except OSError as exc:
            log.error("FILES_DIR could not be written: %s", exc.strerror)
            text = "This service could not store the file. Its operator has to check FILES_DIR"
            raise StoreError(f"{text} ({exc.strerror}).") from exc
        finally:
            if session:
                session.remove_unless_published()

    def find(self, session_id: object, file_id: object) -> StoredFile:
        """Raises NotStored, also for a file that is not whole."""
        if not is_id(session_id) or not is_id(file_id):
            raise NotStored
        folder = self._folder / str(session_id)
        path = folder / str(file_id)
        try:
            index = json.loads((folder / _INDEX).read_bytes())
            entry = index["files"][file_id]
            if path.stat().st_size != entry["size"]:
                raise NotStored
            return StoredFile(path=path, created=index["created"], **entry)
        except (OSError, ValueError, LookupError, TypeError):
            raise NotStored from None

    def delete(self, session_id: str, file_id: str) -> None:
        """Delete a file, its session with the last one. Raises NotStored, StoreError."""
        path = self.find(session_id, file_id).path
        try:
            path.unlink(missing_ok=True)
            if os.listdir(path.parent) == [_INDEX]:
                self._remove(path.parent)
        except FileNotFoundError:
            raise NotStored from None
        except OSError as exc:
            log.error("a file could not be deleted from FILES_DIR: %s", exc.strerror)
            raise StoreError(f"It could not be deleted ({exc.strerror}).") from exc

    def start_sweeping(self) -> None:
        threading.Thread(target=self._keep_sweeping, daemon=True).start()

    def close(self) -> None:
        self._closing.set()

    def _keep_sweeping(self) -> None:
        while True:
            try:
                self.sweep()
            except OSError as exc:
                log.error("FILES_DIR could not be swept: %s", exc.strerror)
            if self._closing.wait(_SWEEP_EVERY_S):
                return

    def sweep(self) -> None:
        """Remove sessions that are too old, then the oldest while there is too much."""
        found = sorted(_session_folders(self._folder))
        total_bytes = sum(size for _, size, _ in found)
        now = time.time()
        for modified_at, size, folder in found:
            is_part = folder.name.startswith(".")
            ttl_s = _ABANDONED_AFTER_S if is_part else self._ttl_s
            is_too_much = total_bytes > self._total_bytes and not is_part
            if is_too_much or modified_at < now - ttl_s:
                self._remove(folder)
                total_bytes -= size

    def _remove(self, folder: Path) -> None:
        """Remove it whole: it cannot be found any more before its first file goes."""
        old = self._folder / f"{_OLD}{new_id()}"
        with suppress(FileNotFoundError):  # another process was faster
            folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)


def _session_folders(root: Path) -> Iterator[tuple[float, int, Path]]:
    """(when it was last written, its bytes, the folder), hidden ones of ours too."""
    for folder in root.iterdir():
        if not is_id(folder.name.removeprefix(_NEW).removeprefix(_OLD)):
            continue
        with suppress(OSError):  # another process removes it
            statuses = [entry.stat() for entry in os.scandir(folder)]
            statuses = statuses or [folder.stat()]
            modified_at = max(status.st_mtime for status in statuses)
            size = sum(status.st_size for status in statuses)
            yield modified_at, size, folder


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
