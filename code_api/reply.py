"""The body of an exec's reply. Pure."""

from typing import Any

from code_api.names import printable
from code_api.report import Report


def reply_body(report: Report) -> dict[str, Any]:
    session_id = report.session_id
    delivered = report.delivered
    left_out = report.written_files - len(delivered)
    body: dict[str, Any] = {
        "session_id": session_id,
        "stdout": report.stdout.getvalue(),
        "stderr": _stderr(report, left_out),
        "files": [],
    }
    for file in delivered:
        ref = {
            "id": file.id,
            "name": file.name,
            "storage_session_id": session_id,
        }
        body["files"].append(ref)
    if delivered and not body["stdout"]:
        # The model sees no other names of files.
        names = ", ".join(printable(file.name) for file in delivered)
        body["stdout"] = f"Files written: {names}\n"
    if report.deleted:
        body["deleted_files"] = sorted(report.deleted)
    if left_out > 0:
        body["artifact_delivery"] = {
            "code": "artifact_delivery_failed",
            "status": "partial" if delivered else "failed",
            "attempted": report.written_files,
            "delivered": len(delivered),
            "failed": left_out,
        }
    return body


def _stderr(report: Report, left_out: int) -> str:
    """The script's own, then a line for each thing that was not as it should be."""
    text = report.stderr.getvalue()
    lines = report.notes + report.left_out
    others = left_out - len(report.left_out)
    if others > 0:
        lines.append(f"{others:,} files more were left out")
    if lines and text and not text.endswith("\n"):
        text += "\n"
    return text + "".join(f"{line}\n" for line in lines)
