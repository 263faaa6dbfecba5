"""Numbers for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .jobs import Job
from .scheduler import Scheduler
from .store import Store

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class _Now(Collector):
    """What is so at the moment of asking."""

    def __init__(self, scheduler: Scheduler, store: Store) -> None:
        self._scheduler = scheduler
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        scheduler = self._scheduler
        yield GaugeMetricFamily("sdcpp_jobs_waiting", "Jobs that wait", value=scheduler.waiting)
        yield GaugeMetricFamily("sdcpp_jobs_running", "Jobs that workers are at", value=len(scheduler.running))
        yield GaugeMetricFamily("sdcpp_store_bytes", "Bytes of pictures that are kept", value=self._store.bytes)
        ready = GaugeMetricFamily("sdcpp_worker_ready", "Whether a worker is ready", labels=["worker"])
        resident = GaugeMetricFamily("sdcpp_worker_resident_bytes", "Memory of a worker", labels=["worker"])
        restarts = GaugeMetricFamily("sdcpp_worker_restarts", "How often a worker was started again", labels=["worker"])
        loaded = GaugeMetricFamily(
            "sdcpp_model_bytes", "Bytes of the weights of a loaded model", labels=["worker", "model"]
        )
        for slot in scheduler.workers:
            worker = slot.worker
            ready.add_metric([worker.name], float(slot.is_ready))
            resident.add_metric([worker.name], worker.resident)
            restarts.add_metric([worker.name], slot.restarts)
            for model, size in worker.loaded.items():
                loaded.add_metric([worker.name, model], size)
        yield from (ready, resident, restarts, loaded)


class Metrics:
    """The numbers of one scheduler."""

    def __init__(self, scheduler: Scheduler, store: Store) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Now(scheduler, store))
        labels = ["mode", "model", "state"]
        self._ended = Counter("sdcpp_jobs", "Jobs that ended", labels, registry=self._registry)
        self._pictures = Counter("sdcpp_pictures", "Pictures and videos", ["mode", "model"], registry=self._registry)
        self._seconds = Histogram(
            "sdcpp_job_seconds", "Seconds that a worker was at a job", ["mode", "model"], buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._waited = Histogram(
            "sdcpp_wait_seconds", "Seconds before a worker began with a job", buckets=_SECONDS, registry=self._registry
        )
        self._phases = Counter(
            "sdcpp_phase_seconds", "Seconds of each phase of drawing", ["phase"], registry=self._registry
        )
        scheduler.observers.append(self._observe)

    def _observe(self, job: Job) -> None:
        """Count a job that ended."""
        mode, model = job.request["mode"], job.request["model"]
        self._ended.labels(mode, model, job.state).inc()
        if job.started is not None and job.ended is not None:
            self._waited.observe(job.started - job.created)
            self._seconds.labels(mode, model).observe(job.ended - job.started)
        if job.state == "done":
            self._pictures.labels(mode, model).inc(len(job.files))
            for phase, seconds in (job.result or {}).get("timings", {}).items():
                if phase not in ("load", "total"):
                    self._phases.labels(phase).inc(seconds)

    def text(self) -> bytes:
        """Return them as Prometheus reads them."""
        return generate_latest(self._registry)
