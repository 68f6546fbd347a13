"""Traces of rounds by OpenTelemetry: one span for a round, below it one for each client and phase.

The spans of a round are built and exported when it is over, on a thread of their own, from the board's timeline. The
destination, the sampler and the name of the service are those of the standard variables: `OTEL_EXPORTER_OTLP_ENDPOINT`,
`OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME`, and so on.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import Status, StatusCode, set_span_in_context

from flcore.server.background_observer import BackgroundObserver, LeftAlone
from flcore.server.events import Event, Observer, RoundFinished
from flcore.server.history import RoundRecord
from flcore.status.client_entry import OUT_PHASES, short_reason
from flcore.status.observed_run import ObservedRun
from flcore.status.timeline import Phase
from flcore.version import __version__

logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)  # it logs each attempt; one line is enough

MAX_SPANS = 5_000
"""The most spans below a round's one. The attribute `flcore.spans_left_out` counts the others."""

EXPORTED_SPANS = 512
"""The spans of one request to the collector."""

MAX_QUEUED_ROUNDS = 20
"""The rounds that wait for a collector that is slow; later ones are dropped. The board has their timelines."""


class FinishedRound(NamedTuple):
    """A round that is over: its record, and when it was over, in seconds since the epoch."""

    record: RoundRecord
    end_s: float


class RoundTraces:
    """Exports the traces of a server's rounds. A context manager.

    Args:
        exporter: Takes the spans: a `SpanExporter` of OpenTelemetry. Default: None, OTLP over HTTP, set by the
            variables `OTEL_EXPORTER_OTLP_*`.
    """

    def __init__(self, exporter: Any = None) -> None:
        self._exporter = OTLPSpanExporter() if exporter is None else exporter
        own = Resource({"service.name": "flcore-server", "service.version": __version__})
        self._left_alone = LeftAlone()
        self._resource = own.merge(OTELResourceDetector().detect())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._exporter.shutdown()

    @contextmanager
    def observe_run(self, run: ObservedRun) -> Iterator[Observer]:
        """Export the rounds of a run while a block lasts."""
        provider, ended = TracerProvider(resource=self._resource, shutdown_on_exit=False), _EndedSpans()
        provider.add_span_processor(ended)
        tracer = provider.get_tracer("flcore", __version__)

        def finished(event: Event) -> FinishedRound | None:
            return FinishedRound(event.record, time.time()) if isinstance(event, RoundFinished) else None

        def export(finished_round: FinishedRound) -> None:
            build_spans(tracer, run, finished_round, run.board.timeline(finished_round.record.round))
            self._export(ended.take())

        background = BackgroundObserver(
            "traces", finished, export, max_events=MAX_QUEUED_ROUNDS, left_alone=self._left_alone
        )
        with background:
            yield background.observe

    def _export(self, spans: Sequence[Any]) -> None:
        for begin in range(0, len(spans), EXPORTED_SPANS):
            if self._exporter.export(spans[begin : begin + EXPORTED_SPANS]) is not SpanExportResult.SUCCESS:
                raise ExportFailed("the collector did not take the spans of a round (OTEL_EXPORTER_OTLP_ENDPOINT)")


class ExportFailed(Exception):
    """The collector did not take a round's spans."""


class _EndedSpans(SpanProcessor):  # type: ignore[misc]
    """Keeps the spans that have ended, for one request."""

    def __init__(self) -> None:
        self._spans: list[Any] = []

    def on_end(self, span: Any) -> None:
        """Keep a span."""
        self._spans.append(span)

    def take(self) -> list[Any]:
        """Return the spans, and forget them."""
        spans, self._spans = self._spans, []
        return spans


def build_spans(tracer: Any, run: ObservedRun, finished: FinishedRound, phases: Sequence[Phase]) -> None:
    """Start and end the spans of a round.

    Args:
        tracer: The tracer.
        run: The run.
        finished: The round.
        phases: The phases of its clients.
    """
    record, end_s = finished
    begin_s = min([end_s - record.seconds.get("round", 0.0), *(phase.begin_s for phase in phases)])
    attributes = {
        "flcore.job": run.id,
        "flcore.round": record.round,
        "flcore.updates": len(record.updates),
        "flcore.spans_left_out": max(0, len(phases) - MAX_SPANS),
    }
    span = tracer.start_span(f"round {record.round}", start_time=_nanoseconds(begin_s), attributes=attributes)
    if span.is_recording():  # else the sampler has left the round out
        context = set_span_in_context(span)
        for phase in phases[:MAX_SPANS]:
            _build_phase(tracer, context, record, phase, end_s)
    if record.skipped:
        span.set_status(Status(StatusCode.ERROR, short_reason(record.skipped)))
    span.end(_nanoseconds(end_s))


def _build_phase(tracer: Any, context: Any, record: RoundRecord, phase: Phase, end_s: float) -> None:
    span = tracer.start_span(
        phase.phase,
        context,
        start_time=_nanoseconds(phase.begin_s),
        attributes={"flcore.client": phase.client, "flcore.task": phase.task, "flcore.round": record.round},
    )
    if phase.phase in OUT_PHASES:
        reason = record.failed.get(phase.task, {}).get(phase.client, "")
        span.set_status(Status(StatusCode.ERROR, short_reason(reason)))
    span.end(_nanoseconds(max(phase.begin_s, end_s if phase.end_s is None else phase.end_s)))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
