"""The numbers that an operator can watch: GET /metrics, in the form of Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

# What can become of a run. Nothing ran where the outcome is "budget", as the day's
# sandbox seconds were spent, or "full", as every slot was taken.
OUTCOMES = ("ok", "error", "timeout", "unavailable", "cancelled", "budget", "full")

RUNS = Counter("e2b_proxy_runs", "Runs, by outcome", ["outcome"])
IN_FLIGHT = Gauge("e2b_proxy_in_flight", "Runs in flight")
WARM_READY = Gauge("e2b_proxy_warm_ready", "Sandboxes kept ready")
IDLE_SESSIONS = Gauge("e2b_proxy_idle_sessions", "Sandboxes kept for a session")
LOST_SANDBOXES = Gauge(
    "e2b_proxy_lost_sandboxes", "Slots held for a create that E2B did not answer"
)
MAX_RUNS = Gauge("e2b_proxy_max_concurrent_runs", "The cap on runs at once")
BUDGET_SECONDS = Gauge(
    "e2b_proxy_budget_seconds", "Sandbox seconds allowed a day, 0 for no limit"
)
SPENT_SECONDS = Gauge(
    "e2b_proxy_spent_seconds", "Sandbox seconds since midnight UTC, or the start"
)
E2B_FAILURES = Counter(
    "e2b_proxy_e2b_failures", "What E2B did not do, by reason", ["reason"]
)
KILLS_FAILED = Counter("e2b_proxy_kills_failed", "Kills that E2B did not confirm")
SANDBOX_SECONDS = Counter(
    "e2b_proxy_sandbox_seconds", "Lifetime of the sandboxes that ended"
)
PICTURE_BYTES = Counter("e2b_proxy_picture_bytes", "Pictures sent back, decoded")
EXECS = Counter("e2b_proxy_execs", "Execs of the code API", ["language", "outcome"])
UPLOADS = Counter("e2b_proxy_uploads", "Files uploaded, by outcome", ["outcome"])
UPLOAD_BYTES = Counter("e2b_proxy_upload_bytes", "Bytes of files uploaded")
DOWNLOAD_BYTES = Counter("e2b_proxy_download_bytes", "Bytes of files sent")
FILES_BYTES = Gauge("e2b_proxy_files_bytes", "Bytes on the disk in FILES_DIR")
FILES_MAX_BYTES = Gauge("e2b_proxy_files_max_bytes", "FILES_TOTAL_BYTES")
FILES_SESSIONS = Gauge("e2b_proxy_files_sessions", "Uploads and runs with files kept")
FILES_REMOVED = Counter(
    "e2b_proxy_files_removed", "Uploads and runs that lost their files", ["reason"]
)
STEP_SECONDS = Histogram(
    "e2b_proxy_step_seconds",
    "Time of: queue, create, run, kill",
    ["step"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)

# Each label is there with 0 from the start, or a rate would not see the first of it.
for outcome in OUTCOMES:
    RUNS.labels(outcome)
for reason in ("key", "limit", "template", "timeout", "network", "other"):
    E2B_FAILURES.labels(reason)
for reason in ("age", "bytes", "inodes"):
    FILES_REMOVED.labels(reason)
for outcome in ("kept", "refused"):
    UPLOADS.labels(outcome)
for step in ("queue", "create", "run", "kill"):
    STEP_SECONDS.labels(step)
