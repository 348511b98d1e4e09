"""What an operator can watch: the numbers behind GET /metrics, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """The numbers of one application, apart from the process-wide default registry."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.runs = Counter("e2b_proxy_runs", "Runs by outcome", ["outcome"], registry=registry)
        self.refused = Counter("e2b_proxy_refused", "Runs refused: full", registry=registry)
        self.step_seconds = Histogram(
            "e2b_proxy_step_seconds", "Time of: queue, create, run, kill", ["step"],
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
            registry=registry)  # fmt: skip
        self.in_flight = Gauge("e2b_proxy_in_flight", "Runs in flight", registry=registry)
        self.warm_ready = Gauge("e2b_proxy_warm_ready", "Sandboxes kept ready", registry=registry)
        self.kills_failed = Counter(
            "e2b_proxy_kills_failed", "Kills that E2B did not confirm", registry=registry)  # fmt: skip
        self.sandbox_seconds = Counter(
            "e2b_proxy_sandbox_seconds", "Lifetime of ended sandboxes", registry=registry)  # fmt: skip
        self.picture_bytes = Counter(
            "e2b_proxy_picture_bytes", "Pictures sent back, decoded", registry=registry)  # fmt: skip
