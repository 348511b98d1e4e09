"""The body of an exec's reply. Pure."""

from typing import Any

from code_api.report import Output, Report

_MAX_NOTED_FILES = 50


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
    lines = [*report.notes, *notes, *_left_out(report)]
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
