"""What an operator can watch: the numbers behind GET /metrics, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The numbers of one application, apart from the process-wide default registry."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        name = "e2b_proxy_{}".format
        self.runs = Counter(name("runs"), "Runs, by outcome", ["outcome"], registry=own)
        self.refused = Counter(name("refused"), "Runs refused: full", registry=own)
        steps = "Time of each step: queue, create, run, kill"
        self.step_seconds = Histogram(
            name("step_seconds"), steps, ["step"], buckets=_BUCKETS_S, registry=own
        )
        self.in_flight = Gauge(name("in_flight"), "Runs in flight", registry=own)
        self.warm_ready = Gauge(name("warm_ready"), "Sandboxes kept ready", registry=own)
        self.kills_failed = Counter(name("kills_failed"), "Kills that failed", registry=own)
        lived = "Lifetime of the sandboxes that ended"
        self.sandbox_seconds = Counter(name("sandbox_seconds"), lived, registry=own)
        self.picture_bytes = Counter(name("picture_bytes"), "Pictures sent back", registry=own)
