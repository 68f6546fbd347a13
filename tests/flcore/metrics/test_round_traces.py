"""Traces of rounds: their spans are the timeline of the board, and they reach a collector."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from flcore.metrics import round_traces
from flcore.metrics.round_traces import RoundTraces
from flcore.server import background_observer
from flcore.server.background_observer import MAX_LEFT_ALONE
from flcore.server.events import AnswerRefused, ClientFailed
from flcore.status import StatusBoard
from tests.flcore.conftest import Stage, adding
from tests.flcore.metrics.observed import WatchedJob, observed_run, watch

SECOND_NS = 1_000_000_000


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    return InMemorySpanExporter()


def played(exporter: Any) -> WatchedJob:
    """A round in which north counts, and south is refused."""
    job = WatchedJob()
    with RoundTraces(exporter) as traces, traces.observe_run(observed_run(job.board)) as job.observe:
        job.join("north", "south")
        job.send("north", "south")
        for client in ("north", "south"):
            job.download(client)
            job.upload(client)
        job.answer("north")
        job.tell(AnswerRefused("train", "south", 1, 2, "out-of-bounds", "too large"))
        job.tell(ClientFailed("train", "south", "too large", 1))
        job.fold("north")
        job.finish(1, failed={"train": {"south": "too large"}})
    return job


def test_a_round_has_a_span_and_below_it_each_client_and_phase(exported: InMemorySpanExporter) -> None:
    job = played(exported)
    spans = exported.get_finished_spans()
    [top] = [span for span in spans if span.parent is None]
    below = [span for span in spans if span is not top]
    assert top.name == "round 1" and top.attributes["flcore.job"] == "played-1"
    assert top.attributes["flcore.round"] == 1 and top.attributes["flcore.updates"] == 1
    assert top.resource.attributes["service.name"] == "flcore-server"
    assert {(span.parent.span_id, span.context.trace_id) for span in below} == {
        (top.context.span_id, top.context.trace_id)
    }
    timeline = job.board.timeline(1)
    assert [(span.attributes["flcore.client"], span.attributes["flcore.task"], span.name) for span in below] == [
        (each.client, each.task, each.phase) for each in timeline
    ]
    for span, each in zip(below, timeline, strict=True):
        assert span.start_time == int(each.begin_s * SECOND_NS)
        assert each.end_s is not None and span.end_time == int(each.end_s * SECOND_NS)
    assert top.start_time <= min(span.start_time for span in below)
    wrong = [span for span in spans if span.status.status_code is StatusCode.ERROR]
    assert [(span.name, span.attributes["flcore.client"], span.status.description) for span in wrong] == [
        ("refused", "south", "too large")
    ]


def test_a_round_that_was_skipped_says_why(exported: InMemorySpanExporter) -> None:
    job = WatchedJob()
    with RoundTraces(exported) as traces, traces.observe_run(observed_run(job.board)) as job.observe:
        job.finish(1, skipped="1 of 2 updates, and the quorum is 2")
    [span] = exported.get_finished_spans()
    assert (span.status.status_code, span.status.description) == (
        StatusCode.ERROR,
        "1 of 2 updates, and the quorum is 2",
    )


def test_the_standard_variables_name_the_service_and_leave_rounds_out(
    exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "north-hub")
    played(exported)
    assert {span.resource.attributes["service.name"] for span in exported.get_finished_spans()} == {"north-hub"}
    exported.clear()
    for name, value in (("OTEL_TRACES_SAMPLER", "always_off"), ("OTEL_SDK_DISABLED", "true")):
        monkeypatch.setenv(name, value)
        played(exported)
        assert exported.get_finished_spans() == ()
        monkeypatch.delenv(name)


def test_the_spans_of_a_round_are_bounded(exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_traces, "MAX_SPANS", 5)
    job = played(exported)
    spans = exported.get_finished_spans()
    assert len(spans) == 6
    [top] = [span for span in spans if span.parent is None]
    assert top.attributes["flcore.spans_left_out"] == len(job.board.timeline(1)) - 5 > 0


def test_a_collector_that_takes_nothing_costs_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(InMemorySpanExporter):  # type: ignore[misc]
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.FAILURE

    job = played(Refusing())
    assert job.board.snapshot().rounds_over == 1
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "traces failed, and the run goes on",
        "traces",
    ]
    assert "ExportFailed: the collector did not take the spans of a round" in caplog.text


def test_a_run_s_traces_reach_a_collector_over_http(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            content = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            received.append(ExportTraceServiceRequest.FromString(content))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    stage.open(wait_for=2, rounds=2, clients=["good", "other"])
    stage.client("good", adding(1.0))
    stage.client("other", adding(2.0))
    history, _ = stage.result()
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_address[1]}")
        board = StatusBoard.of(stage.job.contract)
        with RoundTraces() as traces:
            watch(stage.events, board, traces.observe_run)
        collector.shutdown()
    spans = [
        span
        for request in received
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert [span.name for span in spans if not span.parent_span_id] == ["round 1", "round 2"]
    expected = sorted(each.phase for record in history for each in board.timeline(record.round))
    assert sorted(span.name for span in spans if span.parent_span_id) == expected


def test_a_run_that_ends_within_a_round_exports_nothing_and_leaves_no_thread(exported: InMemorySpanExporter) -> None:
    job = WatchedJob()
    with RoundTraces(exported) as traces, traces.observe_run(observed_run(job.board)) as job.observe:
        job.join("north")
        job.send("north")
        job.download("north")
    assert exported.get_finished_spans() == ()
    assert "flcore-traces" not in {thread.name for thread in threading.enumerate()}


def test_a_collector_that_never_answers_keeps_a_bounded_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_observer, "CLOSE_TIMEOUT_S", 0.01)
    never = threading.Event()

    class Silent(InMemorySpanExporter):  # type: ignore[misc]
        def export(self, spans: Any) -> SpanExportResult:
            assert never.wait(60)
            return SpanExportResult.FAILURE

    try:
        with RoundTraces(Silent()) as traces:
            for _ in range(MAX_LEFT_ALONE + 3):
                job = WatchedJob()
                with traces.observe_run(observed_run(job.board)) as job.observe:
                    job.finish(1)
        hanging = [thread for thread in threading.enumerate() if thread.name == "flcore-traces"]
        assert len(hanging) <= MAX_LEFT_ALONE
    finally:
        never.set()
