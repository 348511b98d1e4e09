"""The numbers that an operator can watch: GET /metrics, in the form of Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

RUNS = Counter("e2b_proxy_runs", "Runs, by outcome; full: refused", ["outcome"])
IN_FLIGHT = Gauge("e2b_proxy_in_flight", "Runs in flight")
WARM_READY = Gauge("e2b_proxy_warm_ready", "Sandboxes kept ready")
IDLE_SESSIONS = Gauge("e2b_proxy_idle_sessions", "Sandboxes kept for a session")
LOST_SANDBOXES = Gauge(
    "e2b_proxy_lost_sandboxes", "Slots held for a create that E2B did not answer"
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
STEP_SECONDS = Histogram(
    "e2b_proxy_step_seconds",
    "Time of: queue, create, run, kill",
    ["step"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
