"""Metrics of the service, for Prometheus."""

from __future__ import annotations

import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Telemetry:
    """The metrics of one application. Applications in one process do not share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "rediffuse_requests",
            "Requests answered.",
            ["route", "method", "status", "model"],
            registry=self.registry,
        )
        self.latency = Histogram(
            "rediffuse_request_latency_seconds",
            "Seconds from receiving a request to answering it.",
            ["route", "model"],
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
        self.model_info = Gauge(
            "rediffuse_model_info",
            "1 for the version of each run that is served.",
            ["model", "architecture", "version", "fingerprint"],
            registry=self.registry,
        )
        self.histories_end = Gauge(
            "rediffuse_histories_end_seconds",
            "Time of the last interaction that a run holds, in seconds since the epoch; absent if it has no times.",
            ["model"],
            registry=self.registry,
        )
        self._described: dict[str, tuple[str, ...]] = {}

    def describe_model(
        self, model: str, architecture: str, version: str, fingerprint: str, histories_end: str | None
    ) -> None:
        """Set the gauges of a run; those of its earlier version disappear.

        Args:
            model: name that the run is served under.
            architecture, version, fingerprint: as in ``/v1/models``.
            histories_end: ISO 8601, or None.
        """
        labels = (model, architecture, version, fingerprint)
        earlier, self._described[model] = self._described.get(model), labels
        self.model_info.labels(*labels).set(1)
        if earlier is not None and earlier != labels:
            self.model_info.remove(*earlier)
        if histories_end is not None:
            end = datetime.datetime.fromisoformat(histories_end)
            end = end if end.tzinfo else end.replace(tzinfo=datetime.UTC)
            self.histories_end.labels(model).set(end.timestamp())
        elif earlier is not None:
            self.histories_end.remove(model)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
