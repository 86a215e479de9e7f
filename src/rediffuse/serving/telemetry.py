"""What a service counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Telemetry:
    """The counters of one application; two in one process do not share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "rediffuse_requests", "Requests answered.", ["route", "method", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "rediffuse_request_seconds", "Time to answer.", ["route"], buckets=SECONDS, registry=self.registry
        )
        self.batch = Histogram(
            "rediffuse_batch_people",
            "People scored together.",
            ["run"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=self.registry,
        )
        self.waiting = Gauge(
            "rediffuse_waiting_people", "People waiting to be scored.", ["run"], registry=self.registry
        )
        self.reloads = Counter(
            "rediffuse_reloads", "Run folders read again.", ["run", "outcome"], registry=self.registry
        )

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)
