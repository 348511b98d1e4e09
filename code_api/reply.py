"""The body of an exec's reply. Pure."""

from typing import TYPE_CHECKING, Any

from code_api.names import printable

if TYPE_CHECKING:
    from code_api.report import Report


def add_notes(report: "Report") -> None:
    """Add our own lines to the end of the script's output. Raises StoreError."""
    stdout = report.streams["stdout"]
    if report.delivered and not stdout.size_bytes():
        # The model learns the names of files in no other way.
        names = ", ".join(printable(file.original_name) for file in report.delivered)
        stdout.add_lines([f"Files written: {names}"])
    report.streams["stderr"].add_lines(_notes(report))


def reply_body(report: "Report") -> dict[str, Any]:
    """The body, whose streams are read only while it is sent."""
    session_id = report.session_id
    delivered = report.delivered
    body: dict[str, Any] = {"session_id": session_id, **report.streams, "files": []}
    for file in delivered:
        ref = {"id": file.id, "name": file.name, "storage_session_id": session_id}
        body["files"].append(ref)
    if report.deleted:
        body["deleted_files"] = sorted(report.deleted)
    left_out = _left_out(report)
    if left_out > 0:
        body["artifact_delivery"] = {
            "code": "artifact_delivery_failed",
            "status": "partial" if delivered else "failed",
            "attempted": report.written_files,
            "delivered": len(delivered),
            "failed": left_out,
        }
    return body


def _left_out(report: "Report") -> int:
    """How many of the files that the script wrote are not in the reply."""
    return report.written_files - len(report.delivered)


def _notes(report: "Report") -> list[str]:
    """A line for each thing that was not as it should be."""
    lines = report.input_notes + report.notes + report.left_out
    for name, output in report.streams.items():
        if output.missing_chars:
            lines.append(
                f"{name} was cut: {output.missing_chars:,} characters more would make"
                " the reply too large"
            )
    others = _left_out(report) - len(report.left_out)
    if others > 0:
        lines.append(f"{others:,} files more were left out")
    return lines
