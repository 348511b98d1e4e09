"""Files into and out of one sandbox, streamed, by E2B's own file API.

Imported only with FILES_DIR. Like sandbox.py it knows the SDK, and relies on private
parts of it: the clients of its `Filesystem`, in whose place ours holds each transfer to
a limit. The SDK sets none for what is streamed, has all that it reads compressed, and
asks after a failure whether the sandbox lives, for as long as that may take.
"""

from collections.abc import Callable, Mapping
from time import monotonic
from typing import IO

import httpx
from e2b.sandbox.filesystem.filesystem import WriteEntry
from e2b.sandbox_sync.filesystem.filesystem import Filesystem

from config import log
from sandboxes.sandbox import (
    FAILED,
    GONE_STATUSES,
    LIMIT_TOLERANCE_S,
    Sandbox,
    SandboxGone,
    Tap,
    TappedSandbox,
    Unavailable,
    short,
)

# The kernel is root, too: no script can change what is written, or be in its way.
_USER = "root"
# Of the answer to a write, which names each of 1,000 files.
_MAX_ANSWER_BYTES = 1024 * 1024
_NOT_WRITTEN = "The files could not be put into the sandbox, so the code did not run"
_TOO_LATE = "E2B did not take them in time"
_REASONS = {
    400: "E2B refused their paths",
    401: "E2B refused this service",
    403: "E2B refused this service",
    507: "its disk is full",
}


class Cut(Unavailable):
    """The connection failed while files were written: another try may do better."""


def write_files(
    sandbox: Sandbox, files: Mapping[str, IO[bytes]], limit_s: float
) -> None:
    """Write files, by their absolute paths, in one request of `limit_s` at most.

    Raises Cut, SandboxGone, Unavailable. Nothing but these files has changed then."""
    if not files:
        return
    give_up_at = monotonic() + limit_s
    answer = bytearray()

    def take(data: bytes) -> None:
        answer.extend(data)
        if len(answer) > _MAX_ANSWER_BYTES:
            raise ValueError("an answer without an end")

    tap = sandbox.e2b.new_tap(take, limit_s)
    tap.for_sdk = answer
    entries = [WriteEntry(path=path, data=file) for path, file in files.items()]
    try:
        # Else the SDK sends a request for each file.
        _filesystem(sandbox.e2b, tap).write_files(
            entries, user=_USER, use_octet_stream=False
        )
    except BaseException as exc:  # a panic of the SDK's transport is no Exception
        log.warning("no files were written to sandbox %s: %s", sandbox.id, short(exc))
        if monotonic() > give_up_at - LIMIT_TOLERANCE_S:
            raise Unavailable(f"{_NOT_WRITTEN}: {_TOO_LATE}.") from exc
        if tap.status in GONE_STATUSES:
            sandbox.is_reusable = False
            raise SandboxGone(f"{_NOT_WRITTEN}: its sandbox was gone.") from exc
        if tap.status in (None, 200):
            raise Cut(f"{_NOT_WRITTEN}: the connection failed.") from exc
        reason = _REASONS.get(tap.status or 0, "E2B failed")
        raise Unavailable(f"{_NOT_WRITTEN}: {reason}.") from exc


def read_file(
    sandbox: Sandbox, path: str, take: Callable[[bytes], None], limit_s: float
) -> None:
    """Have `take` be given the bytes of a file. What it raises ends the transfer.

    Raises Unavailable, after which a part of the file may have come."""
    raised: list[Exception] = []

    def take_or_note(data: bytes) -> None:
        try:
            take(data)
        except Exception as exc:
            raised.append(exc)
            raise

    tap = sandbox.e2b.new_tap(take_or_note, limit_s)
    try:
        _filesystem(sandbox.e2b, tap).read(path, format="stream", user=_USER).close()
    except BaseException as exc:
        if raised:
            raise raised[0] from None
        log.warning("a file was not read from %s: %s", sandbox.id, short(exc))
        raise Unavailable(FAILED) from exc


def _filesystem(e2b: TappedSandbox, tap: Tap) -> Filesystem:
    """The SDK's files, whose one request goes through this tap."""
    config = e2b.connection_config
    client = httpx.Client(
        base_url=e2b.envd_api_url, transport=tap, headers=config.sandbox_headers
    )
    files = Filesystem(e2b.envd_api_url, e2b._envd_version, config, client)
    files._envd_api_streaming = client
    files._envd_health_api = client
    return files
