"""The collector: lines whose content and order depend on the records only, never on the cut."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import MS, T0, Chunks, S, lines, objects, probe, raw_sample, raw_span, slo_event, span_id, span_request, trace_id
from hypothesis import given, settings
from hypothesis import strategies as st

from libslo.collect import EMITS, Collector, CollectSettings, _Inbox, collect
from libslo.contracts import OTLP_SPANS, contract
from libslo.errors import InputError
from libslo.jsonl import read_jsonl
from libslo.recordings import Recording
from libslo.spans import decode_spans

CONSUMES = ("raw-sample", "probe-event", OTLP_SPANS, "stream-time")
CONVERT = {OTLP_SPANS: lambda value: list(decode_spans(value))}


def collected(data: bytes, sizes: list[int] | None = None, **options: Any) -> tuple[bytes, Collector]:
    out: list[bytes] = []
    collector = Collector(CollectSettings(**options), lambda _kind, _value, block, _count: out.append(block))
    stream: Any = io.BytesIO(data) if sizes is None else Chunks(data, sizes)
    for records in read_jsonl("F", CONSUMES, stream=stream, convert=CONVERT):
        collector.feed(records)
    collector.finish()
    return b"".join(out), collector


@st.composite
def inputs(draw: Any) -> list[dict[str, Any]]:
    values: list[dict[str, Any]] = []
    now = T0 + 4000 * S
    for number in range(draw(st.integers(0, 20))):
        now += draw(st.sampled_from([0, 0, 500, 1000, 3000])) * MS
        at = now - draw(st.sampled_from([0, 0, 0, 1000, 6000, 3_600_000])) * MS
        match draw(st.integers(0, 5)):
            case 0:
                values.append(raw_sample(request_id=f"r{number}"))
            case 1:
                values.append(slo_event(event_id=f"e{number}"))
            case 2 | 3:
                values.append(probe(at, tid=number))
            case 4:
                values.append({"stream_unix_nano": now + 100 * MS})
            case _:
                values.append(span_request(raw_span(at - 500 * MS, at, trace=trace_id(number % 3), span=span_id(number))))
    return values


@settings(max_examples=150)
@given(inputs(), st.lists(st.integers(1, 2500), min_size=1, max_size=10))
def test_the_cut_changes_no_byte(values: list[dict[str, Any]], sizes: list[int]) -> None:
    """Whole, in reads of any size, or a line at a time: the same bytes in the same order."""
    data = lines(values)
    whole, _ = collected(data)
    assert collected(data, sizes)[0] == whole
    assert collected(data, [len(line) for line in data.splitlines(keepends=True)] or [1])[0] == whole


def test_what_comes_out() -> None:
    """Samples give four slo-events, a server span gives its SLIs, signals and spans come enriched, strangers pass."""
    span = span_request(raw_span(T0, T0 + S, kind=2))
    data = lines([raw_sample(), probe(T0 + 500 * MS, value=20.0), span, slo_event(event_id="theirs"), {"hello": 1}])
    out = objects(collected(data, cluster="lab")[0])
    kinds = ["slo" if "sli_name" in o else "probe" if "signal" in o else "spans" if "resourceSpans" in o else "other" for o in out]
    assert sorted(kinds) == sorted(["slo"] * 4 + ["slo"] * 2 + ["slo", "other"] + ["probe", "spans"])
    event = next(o for o in out if "signal" in o)
    assert contract("probe-event").is_valid(event) and event["span_id"] == "b7ad6b7169203331"
    (enriched,) = decode_spans(next(o for o in out if "resourceSpans" in o))
    assert enriched.attributes["llm.ebpf.dns.latency_ms"] == 20.0
    assert {o["cluster"] for o in out if o.get("sli_name") and o["event_id"].startswith("b7ad")} == {"lab"}


@pytest.mark.parametrize("emit", EMITS)
def test_emit_chooses(emit: str) -> None:
    """Only the records asked for are written; the rest is still counted."""
    ticks = [{"stream_unix_nano": T0 + seconds * S} for seconds in (60, 61)]
    data = lines([raw_sample(), probe(T0), span_request(raw_span()), {"hello": 1}, *ticks])
    out, collector = collected(data, emit=frozenset([emit]))
    said = [each for each in objects(out) if "hello" not in each]
    marker = {"slo-event": "sli_name", "probe-event": "signal", "spans": "resourceSpans", "stream-time": "stream_unix_nano"}[emit]
    assert said and all(marker in each for each in said)
    assert collector.slo_events == 6


def test_pass_through_keeps_the_line_as_it_was() -> None:
    """A stranger is copied byte for byte, or left out and counted."""
    raw = b'{ "hello":1.50,  "x":"\\u00e9" }\n'
    assert collected(raw)[0] == raw
    out, collector = collected(raw, pass_through=False)
    assert out == b"" and collector.dropped == 1


def test_two_files_are_read_in_step(tmp_path: Path) -> None:
    """Signals and spans from two files, each in order of time, are joined as if they were one stream."""
    probes = [probe(T0 + i * S, tid=i, value=20.0) for i in range(60)]
    spans = [
        span_request(raw_span(T0 + i * S - 100 * MS, T0 + i * S + 50 * MS, trace=trace_id(i), span=span_id(i), kind=3)) for i in range(60)
    ]
    (tmp_path / "p.jsonl").write_bytes(lines(probes))
    (tmp_path / "s.jsonl").write_bytes(lines(spans))
    notes: list[str] = []
    settings = CollectSettings((str(tmp_path / "p.jsonl"),), (str(tmp_path / "s.jsonl"),), out=str(tmp_path / "o.jsonl"))
    collect(settings, notes.append, lambda _: None)
    out = objects((tmp_path / "o.jsonl").read_bytes())
    assert sum("span_id" in o for o in out) == 60
    assert any("60 signals, 60 spans (60 enriched)" in text for text in notes)
    assert not any("later" in text for text in notes)


def test_the_account_is_said(tmp_path: Path) -> None:
    """Lines in, bad ones, what was left out and what was made of it are told in the end."""
    (tmp_path / "i.jsonl").write_bytes(lines([raw_sample(), {"x": 1}]) + b"{\n")
    notes, bad = [], []
    settings = CollectSettings((str(tmp_path / "i.jsonl"),), out=str(tmp_path / "o"), on_bad="skip", pass_through=False)
    collect(settings, notes.append, bad.append)
    assert notes == ["3 lines in, 1 bad, 1 not for us and left out; 4 slo-events"]
    assert [error.line for error in bad] == [3]


def test_spans_without_slis_make_no_events() -> None:
    """An internal span gives no slo-event, but is written."""
    out = objects(collected(lines([span_request(raw_span(kind=1))]))[0])
    assert [list(o) for o in out] == [["resourceSpans"]]


def test_several_spans_of_one_line_come_out_one_a_line() -> None:
    """Each span is a line of its own, with its resource."""
    data = lines([span_request(raw_span(kind=1, span=span_id(1)), raw_span(kind=1, span=span_id(2)))])
    out = collected(data)[0].splitlines()
    assert [next(decode_spans(orjson.loads(line))).service for line in out] == ["rag", "rag"]


def test_stream_time_is_the_tick_of_a_live_run() -> None:
    """Joined records come with the next stream-time, not before, and what it passes is finished; it is not handed on itself."""
    span = span_request(raw_span(T0, T0 + S, kind=2))
    tick = {"stream_unix_nano": T0}
    data = [tick, probe(T0 + 500 * MS, value=20.0), span, {"hello": 1}, {"stream_unix_nano": T0 + 60 * S}, slo_event()]
    out = objects(collected(lines(data))[0])
    kinds = [next(key for key in ("sli_name", "signal", "resourceSpans", "hello") if key in each) for each in out]
    assert kinds == ["sli_name", "sli_name", "hello", "signal", "resourceSpans", "sli_name"]
    assert out[3]["span_id"] == "b7ad6b7169203331"


LOAD_RESULT = {
    "request_id": "r-1", "profile": "p", "scheduled_unix_ns": T0, "sent_unix_ns": T0, "end_unix_ns": T0 + S,
    "status": 200, "tokens": 0, "warmup": False, "synthetic": False,
}  # fmt: skip


def ran(tmp_path: Path, values: list[Any], **options: Any) -> tuple[list[dict[str, Any]], list[str]]:
    (tmp_path / "i.jsonl").write_bytes(lines(values))
    notes: list[str] = []
    collect(CollectSettings((str(tmp_path / "i.jsonl"),), out=str(tmp_path / "o"), **options), notes.append, lambda _: None)
    return objects((tmp_path / "o").read_bytes()), notes


def test_load_results_count_when_their_service_is_named(tmp_path: Path) -> None:
    """Without a service they are for others and pass; with one they become its slo-events, in their place, and are counted."""
    data = [LOAD_RESULT, slo_event(), {**LOAD_RESULT, "warmup": True}]
    assert ran(tmp_path, data)[0] == data
    assert ran(tmp_path, data, pass_through=False)[1][0].endswith("3 not for us and left out; 0 slo-events")
    out, notes = ran(tmp_path, data, load_service="chat", cluster="lab")
    assert [(each["service"], each["sli_name"]) for each in out] == [
        ("chat", "request_latency_ms"), ("chat", "error_rate"), ("rag", "ttft_ms"),
    ]  # fmt: skip
    assert notes[:2] == [
        "3 lines in, 0 bad, 0 not for us and left out; 2 slo-events",
        "1 load-results gave slo-events, 1 did not (in the warm-up, not sent, or broken off by the generator)",
    ]


def test_requests_that_count_twice_are_said(tmp_path: Path) -> None:
    """Spans of the same service tell of the same requests: said with their number, and not when they are another's or no requests."""
    data = [LOAD_RESULT, span_request(raw_span(kind=2)), span_request(raw_span(kind=1, name="chat.retrieval", span=span_id(5)))]
    assert any(
        "1 requests of that service came as spans too and count twice:" in text for text in ran(tmp_path, data, load_service="rag")[1]
    )
    assert not any("twice" in text for text in ran(tmp_path, data, load_service="chat")[1])
    assert not any("twice" in text for text in ran(tmp_path, data[1:], load_service="rag")[1])


def test_a_bad_load_result_is_a_bad_line_where_it_is_read(tmp_path: Path) -> None:
    """With a service named it is checked; without one it is none of ours."""
    bad = {**LOAD_RESULT, "status": "x"}
    assert ran(tmp_path, [bad])[0] == [bad]
    with pytest.raises(InputError, match="not a valid load-result: status"):
        ran(tmp_path, [bad], load_service="rag")


def test_a_live_stream_that_is_quiet_says_how_far_time_has_come() -> None:
    """Once a second without a word; never before the first one, and not while there is something to say; a clock set back waits."""
    times = [0, 5, 10, 10.4, 10.9, 11, 11.5, 12, 2, 2.9, 3]
    ticks: list[dict[str, Any]] = [{"stream_unix_nano": T0 + int(seconds * S)} for seconds in times]
    data = lines([*ticks[:2], slo_event(), *ticks[2:4], slo_event(), *ticks[4:]])
    out = [each["stream_unix_nano"] for each in objects(collected(data)[0]) if "stream_unix_nano" in each]
    assert [(ts - T0) / S for ts in out] == [12, 3]
    assert b"stream_unix_nano" not in collected(data, emit=frozenset(EMITS) - {"stream-time"})[0]


def test_a_live_stream_at_second_hand_is_joined_while_it_is_busy() -> None:
    """What another collector wrote has its moments of time in quiet seconds only: joined records do not wait for the next one."""
    busy: list[Any] = [{"stream_unix_nano": T0}]
    for i in range(1, 100):
        at = T0 + i * 100 * MS
        busy += [
            probe(at, value=20.0, tid=i),
            span_request(raw_span(at - 50 * MS, at + 50 * MS, trace=trace_id(i), span=span_id(i), kind=3)),
        ]
    sink: list[str] = []
    collector = Collector(CollectSettings(), lambda kind, *_: sink.append(kind))
    for batch in read_jsonl("F", CONSUMES, stream=io.BytesIO(lines(busy)), convert=CONVERT):
        collector.feed(batch)
    assert sink.count("probe-event") >= 50 and sink.count("spans") >= 50
    collector.finish()
    assert sink.count("probe-event") == sink.count("spans") == 99


def test_a_span_from_the_future_does_not_part_two_files(tmp_path: Path) -> None:
    """One end in another century puts the spans after it behind nobody."""
    probes = [probe(T0 + i * S, tid=i, value=20.0) for i in range(60)]
    spans = [raw_span(T0 + i * S - 100 * MS, T0 + i * S + 50 * MS, trace=trace_id(i), span=span_id(i), kind=3) for i in range(60)]
    spans[3]["endTimeUnixNano"] = str(2**62 - 1)
    (tmp_path / "p.jsonl").write_bytes(lines(probes))
    (tmp_path / "s.jsonl").write_bytes(lines(map(span_request, spans)))
    settings = CollectSettings((str(tmp_path / "p.jsonl"),), (str(tmp_path / "s.jsonl"),), out=str(tmp_path / "o.jsonl"))
    collect(settings, lambda _: None, lambda _: None)
    out = objects((tmp_path / "o.jsonl").read_bytes())
    assert sum("span_id" in o for o in out) >= 58


def test_after_the_end_nothing_is_acknowledged() -> None:
    """An exporter on an open connection is told to come again, instead of being thanked for what nobody reads any more."""
    inbox = _Inbox(keep=False)
    assert inbox.accept(span_request(raw_span()))
    inbox.close()
    assert not inbox.accept(span_request(raw_span()))
    assert inbox.queue.qsize() == 1


def test_a_reader_that_goes_away_leaves_a_whole_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was consumed until then can be replayed."""
    (tmp_path / "i.jsonl").write_bytes(lines([probe(T0 + i * S) for i in range(10)]))

    def gone(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("libslo.jsonl.JsonlWriter.flush", gone)
    with pytest.raises(BrokenPipeError):
        collect(
            CollectSettings((str(tmp_path / "i.jsonl"),), record=str(tmp_path / "r"), out=str(tmp_path / "o")),
            lambda _: None,
            lambda _: None,
        )
    assert len(list(Recording(tmp_path / "r").input())) == 10


def test_a_span_that_comes_late_on_a_live_stream_finds_its_signals_in_the_replay_too() -> None:
    """A live collector remembers unlinked signals; with the moments of time replayed so does this one, without them it does not."""
    signal = probe(T0 + 500 * MS, value=20.0)
    late = span_request(raw_span(T0, T0 + S, kind=2))
    ticks = [{"stream_unix_nano": T0 + seconds * S} for seconds in (0, 5)]
    others = [probe(T0 + 5 * S + i, pid=99) for i in range(3)]
    for data, found in (([ticks[0], signal, ticks[1], late], True), ([signal, *others, late], False)):
        spans = [each for each in objects(collected(lines(data))[0]) if "resourceSpans" in each]
        (span,) = decode_spans(spans[0])
        assert ("llm.ebpf.dns.latency_ms" in span.attributes) is found
