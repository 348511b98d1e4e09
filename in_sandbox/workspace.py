"""What of a session's inputs its /mnt/data has seen: sent with script.py, for sessions.

All execs of a session find one /mnt/data, and each names all of its inputs. An input is
put there only once, for what scripts have made of it since wins. So there is a file,
beside /mnt/data where no script can write, that has each name's ids: that of the input
which was put there last, and those under which changed versions of it were returned.
An input whose id is none of these is another file of that name, and takes its place.
"""

from __future__ import annotations

import base64
import ctypes
import hmac
import json
import os
import signal
import time
from contextlib import suppress
from typing import Any

PR_SET_CHILD_SUBREAPER = 36  # of prctl(2)
KILL_ROUNDS = 50


class Processes:
    """What this process starts from now on, and what that starts.

    It stays below this process, whoever ends in between, also where it has left its
    session and its environment; but only on Linux."""

    def __init__(self) -> None:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._before = self._below()

    def end(self) -> None:
        for _ in range(KILL_ROUNDS):
            started = self._below() - self._before
            if not started:
                return
            for pid in started:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
            for pid in started:
                with suppress(OSError):  # it has another parent, or still runs
                    os.waitpid(pid, os.WNOHANG)

    def _below(self) -> set[int]:
        children: dict[int, list[int]] = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError), open(f"/proc/{pid}/stat") as file:
                # 71 (name) S 70 ...: a name may hold anything, brackets as well.
                parent = file.read().rpartition(")")[2].split()[1]
                children.setdefault(int(parent), []).append(int(pid))
        found: set[int] = set()
        left = [os.getpid()]
        while left:
            below = children.get(left.pop(), [])
            found.update(below)
            left += below
        return found


class Workspace:
    def __init__(self, data: str, session: Any) -> None:
        """`session`: what code_api/stateful.py says of this exec."""
        self.processes = Processes()
        self._data = data
        self._path = f"{data}-seen.json"
        self._refs = session["refs"]  # the ids of the inputs, by their names
        self._read_only: set[str] = set(session["read_only"])
        self._secret = session["secret"]
        # Inputs that are neither in the cell nor staged, for they may be there.
        self._left_out = session["left_out"]
        self._seen: dict[str, Any] = {}
        # It is not there in a new sandbox, and a kernel that dies leaves it whole.
        with suppress(OSError, ValueError), open(self._path, encoding="utf-8") as file:
            self._seen = json.load(file)

    def wants(self, name: str) -> bool:
        """Whether an input has to be put there."""
        seen = self._seen.get(name)
        stamp = self._stamp(name)
        if not seen or not stamp or self._refs[name] not in seen["ids"]:
            return True
        return name in self._read_only and seen["stamp"] != stamp

    def missing(self) -> list[str]:
        """The inputs that have to come before the script can run."""
        return [name for name in self._left_out if self.wants(name)]

    def read_only(self) -> set[str]:
        """The names of all files here that scripts may only read."""
        seen = {name for name, entry in self._seen.items() if entry["stamp"]}
        writable = set(self._refs) - self._read_only
        return (seen | self._read_only) - writable

    def note_input(self, name: str) -> None:
        """To be called once an input has been put there."""
        stamp = self._stamp(name) if name in self._read_only else None
        self._seen[name] = {"ids": [self._refs[name]], "stamp": stamp}

    def note_output(self, name: str) -> None:
        """The service returns it under this id, by which the next exec names it."""
        entry = self._seen.setdefault(name, {"ids": [], "stamp": None})
        entry["ids"].append(self._id_of_output(name))

    def save(self) -> None:
        there = {name: seen for name, seen in self._seen.items() if self._stamp(name)}
        new_path = f"{self._path}.new"
        with open(new_path, "w", encoding="utf-8") as file:
            json.dump(there, file)
        os.replace(new_path, self._path)

    def _stamp(self, name: str) -> list[int]:
        """Another one than before means another file or content; empty: none is there.

        When its inode changed does not count: a link to it is no change."""
        try:
            status = os.lstat(os.path.join(self._data, name))
        except OSError:
            return []
        return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode]

    def _id_of_output(self, name: str) -> str:
        """As code_api/names.py makes it."""
        text = name.encode("utf-8", "surrogatepass")
        digest = hmac.new(self._secret.encode(), text, "sha256").digest()
        return base64.urlsafe_b64encode(digest)[:21].decode()
