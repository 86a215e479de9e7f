"""Metrics of the service, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Telemetry:
    """The metrics of one application. Applications in one process do not share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "rediffuse_requests", "Requests answered.", ["route", "method", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "rediffuse_request_latency_seconds",
            "Seconds from receiving a request to answering it.",
            ["route"],
            buckets=LATENCIES,
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "rediffuse_batch_size",
            "Users per scored batch; the sum is the number of users scored.",
            ["model"],
            buckets=BATCH_SIZES,
            registry=self.registry,
        )
        self.waiting_users = Gauge(
            "rediffuse_waiting_users", "Users waiting to be scored.", ["model"], registry=self.registry
        )
        self.reloads = Counter(
            "rediffuse_reloads", "Reloads of changed run folders.", ["model", "outcome"], registry=self.registry
        )

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
