"""The body of an exec's reply. Pure."""

from typing import Any

from code_api.report import Output, Report

_MAX_NAMED = 50


def reply_body(
    session_id: str, report: Report | None, outputs: list[Output], notes: list[str]
) -> dict[str, Any]:
    """What LibreChat reads; `notes` are lines that follow the script's stderr."""
    body: dict[str, Any] = {
        "session_id": session_id,
        "stdout": "",
        "stderr": "",
        "files": [],
    }
    for output in outputs:
        file = {
            "id": output.file_id,
            "name": output.name,
            "storage_session_id": session_id,
        }
        body["files"].append(file)
    if report:
        body["stdout"] = report.stdout.getvalue()
        body["stderr"] = report.stderr.getvalue()
        notes = [*report.notes, *notes, *_left_out(report)]
        if report.deleted:
            body["deleted_files"] = report.deleted
        body |= _delivery(report, len(outputs))
    if outputs and not body["stdout"]:
        names = [output.name for output in outputs]
        body["stdout"] = f"Files written: {', '.join(names)}\n"
    if notes and body["stderr"]:
        body["stderr"] = body["stderr"].removesuffix("\n") + "\n"
    for note in notes:
        body["stderr"] += f"{note}\n"
    return body


def _delivery(report: Report, delivered: int) -> dict[str, Any]:
    """How many files were left out, where some were."""
    failed = report.written_files - delivered
    failed = max(failed, len(report.left_out))
    if not failed:
        return {}
    counts = {
        "code": "artifact_delivery_failed",
        "status": "partial" if delivered else "failed",
        "attempted": delivered + failed,
        "delivered": delivered,
        "failed": failed,
    }
    return {"artifact_delivery": counts}


def _left_out(report: Report) -> list[str]:
    named = report.left_out[:_MAX_NAMED]
    lines = [f"file {name} was left out: {why}" for name, why in named]
    more = report.written_files - len(report.outputs) - len(named)
    if more > 0:
        lines.append(f"{more:,} files more were left out")
    return lines
