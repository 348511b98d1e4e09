"""The body of an exec's reply. Pure."""

import signal
from typing import Any

from code_api.names import printable
from code_api.report import Output, Report

_MAX_NOTED_FILES = 50


def outcome_of(ended: dict[str, Any]) -> str:
    """ "ok", "error" or "timeout"; `ended` is the report's line that says how."""
    if ended.get("timed_out"):
        return "timeout"
    return "ok" if ended.get("returncode") == 0 else "error"


def reply_body(
    session_id: str, report: Report | None, outputs: list[Output], notes: list[str]
) -> dict[str, Any]:
    """`notes` are lines that follow the script's stderr."""
    files = [
        {"id": output.file_id, "name": output.name, "storage_session_id": session_id}
        for output in outputs
    ]
    body: dict[str, Any] = {"session_id": session_id, "stdout": "", "files": files}
    if not report:
        return body | {"stderr": _with_lines("", notes)}
    stdout = report.stdout.text()
    if not stdout and outputs:
        names = ", ".join(output.name for output in outputs)
        stdout = f"Files written: {names}\n"
    lines = [*notes, *_cuts(report), *_left_out(report)]
    body["stdout"] = stdout
    body["stderr"] = _with_lines(report.stderr.text(), lines)
    if report.deleted:
        body["deleted_files"] = report.deleted
    failed = max(len(report.left_out), report.written_files - len(outputs))
    if failed:
        body["artifact_delivery"] = {
            "code": "artifact_delivery_failed",
            "status": "partial" if outputs else "failed",
            "attempted": len(outputs) + failed,
            "delivered": len(outputs),
            "failed": failed,
        }
    return body


def end_notes(ended: dict[str, Any], limit_s: int) -> list[str]:
    """How the script ended, unless without an error."""
    code = ended.get("returncode")
    if code == 0:
        return []
    if "missing" in ended:
        tool = printable(ended["missing"])
        return [f"{tool} is not part of this sandbox's template"]
    if ended.get("timed_out"):
        return [f"stopped after {limit_s} s, its time limit"]
    if not isinstance(code, int):
        reason = printable(ended.get("not_started"))
        return [f"the script could not be started: {reason}"]
    if code == -signal.SIGKILL:
        return ["killed by signal 9, perhaps because memory ran out"]
    return [f"killed by signal {-code}" if code < 0 else f"exit code {code}"]


def _cuts(report: Report) -> list[str]:
    streams = {"stdout": report.stdout, "stderr": report.stderr}
    return [
        f"{name} was cut: {text.cut_bytes:,} bytes more were not kept"
        for name, text in streams.items()
        if text.cut_bytes
    ]


def _left_out(report: Report) -> list[str]:
    named = report.left_out[:_MAX_NOTED_FILES]
    lines = [f"file {name} was left out: {why}" for name, why in named]
    others = report.written_files - len(report.outputs) - len(named)
    if others > 0:
        lines.append(f"{others:,} files more were left out")
    return lines


def _with_lines(text: str, lines: list[str]) -> str:
    if text and lines and not text.endswith("\n"):
        text += "\n"
    return text + "".join(f"{line}\n" for line in lines)
