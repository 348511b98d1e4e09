"""Keeps the sessions in FILES_DIR within bounds on their age, bytes and inodes.

Several processes, and replicas, may sweep one FILES_DIR.
"""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from code_api.names import is_id
from code_api.store import HIDDEN, owner_of_new_files, remove_session
from config import Config, log
from metrics import FILES_BYTES, FILES_MAX_BYTES, FILES_REMOVED, FILES_SESSIONS

# A hidden session that nobody has written to for this long was left behind by a process
# that died: no request may be silent for as long.
_ABANDONED_AFTER_S = 3600
_SWEEP_EVERY_S = 60
# The step by which most file systems give space to a file.
_BLOCK_BYTES = 4096


class _Session(NamedTuple):
    """The findings of a sweep in a session's folder."""

    changed_ns: int  # the folder's own time: another one means that a file came or went
    written_at: float  # seconds since 1970
    size_bytes: int  # on the disk, the folder and the index included
    inodes: int  # the folder's and the index's included


class Sweeper:
    """Removes whole sessions below `config.files_dir`: those that are too old, and the
    oldest while there is too much.

    The findings in a session's folder are remembered by the folder's name: a later
    sweep looks only into folders that are new or have changed.
    """

    def __init__(self, root: Path, config: Config) -> None:
        self._root = root
        self._owner = owner_of_new_files(root)
        self._ttl_s = config.files_ttl_hours * 3600
        self._total_bytes = config.files_total_bytes
        FILES_MAX_BYTES.set(self._total_bytes)
        self._total_inodes = config.files_total_inodes
        self._known: dict[str, _Session] = {}
        self._failures: list[OSError] = []  # of this sweep
        self._has_warned = False

    def start(self) -> None:
        threading.Thread(target=self._keep_sweeping, daemon=True).start()

    def _keep_sweeping(self) -> None:
        while True:
            try:
                self.sweep()
            except OSError as exc:
                log.error("FILES_DIR could not be swept: %s", exc.strerror)
            time.sleep(_SWEEP_EVERY_S)

    def sweep(self) -> None:
        """Remove sessions that are too old, or too many. Raises OSError if there is no
        FILES_DIR.

        A session that cannot be read or removed is logged; the others still are swept.
        """
        self._failures = []
        self._known = self._find()
        kept = self._evict(self._known)
        FILES_SESSIONS.set(len(kept))
        FILES_BYTES.set(sum(session.size_bytes for session in kept))
        if self._failures:
            log.error(
                "%s sessions in FILES_DIR could not be read or removed: %s",
                len(self._failures),
                self._failures[0].strerror,
            )

    def _find(self) -> dict[str, _Session]:
        """All sessions that are this service's own, by the names of their folders."""
        found = {}
        foreign = 0
        with os.scandir(self._root) as entries:
            for entry in entries:
                known = self._known.get(entry.name)
                if not _is_session(entry):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                    if status.st_uid != self._owner:
                        foreign += 1
                        continue
                    if not known or _may_have_changed(entry.name, known, status):
                        known = _look_into(entry.path, status)
                    found[entry.name] = known
                except FileNotFoundError:
                    pass  # another process has removed it
                except OSError as exc:
                    self._failures.append(exc)
        if foreign and not self._has_warned:
            self._has_warned = True
            log.warning(
                "%s folders in FILES_DIR belong to another user, perhaps the one that "
                "this service ran as before: they are not served, not counted and not "
                "removed. Give them to this user (chown -R), or remove them.",
                foreign,
            )
        return found

    def _evict(self, sessions: dict[str, _Session]) -> list[_Session]:
        """Remove those that are too old or too many; returns the others."""
        kept = []
        total_bytes = sum(session.size_bytes for session in sessions.values())
        total_inodes = sum(session.inodes for session in sessions.values())
        now = time.time()
        for name in sorted(sessions, key=lambda name: sessions[name].written_at):
            session = sessions[name]
            is_hidden = name.startswith(HIDDEN)
            ttl_s = _ABANDONED_AFTER_S if is_hidden else self._ttl_s
            is_old = session.written_at < now - ttl_s
            reason = "age" if is_old else ""
            # A hidden session may be an upload under way.
            if not is_old and not is_hidden:
                if total_bytes > self._total_bytes:
                    reason = "bytes"
                elif total_inodes > self._total_inodes:
                    reason = "inodes"
            if not reason:
                kept.append(session)
            else:
                # Counted before it is tried: if one cannot be removed, no other has to
                # go in its place.
                total_bytes -= session.size_bytes
                total_inodes -= session.inodes
                try:
                    remove_session(self._root / name)
                    FILES_REMOVED.labels(reason).inc()
                except OSError as exc:
                    self._failures.append(exc)
        return kept


def _is_session(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder with the name of a session, which may be hidden."""
    is_named_so = is_id(entry.name.removeprefix(HIDDEN))
    return is_named_so and entry.is_dir(follow_symlinks=False)


def _may_have_changed(name: str, known: _Session, status: os.stat_result) -> bool:
    """Files of a hidden session grow, which does not show in the folder's own time."""
    return name.startswith(HIDDEN) or known.changed_ns != status.st_mtime_ns


def _look_into(folder: str, folder_status: os.stat_result) -> _Session:
    """Sum up the session in a folder. Raises OSError."""
    statuses = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # it was deleted meanwhile
                statuses.append(entry.stat(follow_symlinks=False))
    # Deleting one of its files does not make a session younger.
    written_at = [status.st_mtime for status in statuses or [folder_status]]
    statuses.append(folder_status)
    return _Session(
        changed_ns=folder_status.st_mtime_ns,
        written_at=max(written_at),
        size_bytes=sum(map(_bytes_on_disk, statuses)),
        inodes=len(statuses),
    )


def _bytes_on_disk(status: os.stat_result) -> int:
    """How much of a disk a file takes, at least in whole blocks.

    Some file systems report fewer blocks than a file will have, or none, until they
    have written it out, or if it lies in its inode."""
    blocks = -(-status.st_size // _BLOCK_BYTES)
    return max(status.st_blocks * 512, blocks * _BLOCK_BYTES)
