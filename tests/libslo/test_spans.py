"""OTLP JSON lines become spans; what is malformed is an input error that says what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from builders import MS, T0, TRACE, S, attributes, one_span, raw_span, span_request
from hypothesis import given
from hypothesis import strategies as st

from libslo.collect import _spans_of
from libslo.errors import InputError
from libslo.slo import slo_events_from_span
from libslo.spans import decode_spans, finite, otlp_value, span_line


def test_file_exporter_line() -> None:
    """A line as the OpenTelemetry Collector's file exporter writes it: enum words, integers as strings, hex ids."""
    request = {
        "resourceSpans": [
            {
                "resource": {
                    "attributes": attributes({"service.name": "rag", "k8s.pod.name": "rag-0", "k8s.node.name": "n1", "process.pid": 7})
                },
                "scopeSpans": [
                    {
                        "scope": {"name": "lib", "version": "1"},
                        "spans": [
                            {
                                "traceId": TRACE.upper(),
                                "spanId": "B7AD6B7169203331",
                                "parentSpanId": "",
                                "name": "POST /chat",
                                "kind": "SPAN_KIND_SERVER",
                                "startTimeUnixNano": str(T0),
                                "endTimeUnixNano": str(T0 + 5 * MS),
                                "attributes": attributes({"http.response.status_code": 429, "llm.slo.ttft_ms": 2.5, "ok": True}),
                                "status": {"code": "STATUS_CODE_ERROR", "message": "too many"},
                            }
                        ],
                    }
                ],
            }
        ]
    }
    (span,) = decode_spans(request)
    assert (span.trace_id, span.span_id, span.kind, span.is_error) == (TRACE, "b7ad6b7169203331", 2, True)
    assert (span.start_unix_ns, span.end_unix_ns, span.duration_ms) == (T0, T0 + 5 * MS, 5.0)
    assert (span.service, span.pod, span.node, span.pid, span.workload) == ("rag", "rag-0", "n1", 7, "rag")
    assert span.attributes == {"http.response.status_code": 429, "llm.slo.ttft_ms": 2.5, "ok": True}


@pytest.mark.parametrize("number", [True, False])
def test_integers_as_strings_and_as_numbers(number: bool) -> None:
    """64-bit integers may come as strings (the specification) or as numbers (many senders)."""
    raw = raw_span()
    if number:
        raw["startTimeUnixNano"], raw["endTimeUnixNano"] = T0, T0 + S
        raw["attributes"] = [{"key": "a", "value": {"intValue": 5}}]
    else:
        raw["attributes"] = [{"key": "a", "value": {"intValue": "5"}}]
    (span,) = decode_spans(span_request(raw))
    assert (span.start_unix_ns, span.end_unix_ns, span.attributes) == (T0, T0 + S, {"a": 5})


@pytest.mark.parametrize("end", [None, 0, T0 - 1])
def test_a_span_without_a_usable_end_is_a_point(end: int | None) -> None:
    """A missing, zero or earlier end makes the span a point at its start."""
    (span,) = decode_spans(span_request(raw_span(end=end)))
    assert span.end_unix_ns == T0 and span.duration_ms == 0


def test_resource_and_scope_may_be_missing() -> None:
    """A span without a resource belongs to nobody, and is still a span."""
    for holder in ({}, {"resource": {}}, {"resource": None}):
        (span,) = decode_spans({"resourceSpans": [{**holder, "scopeSpans": [{"spans": [raw_span()]}]}]})
        assert (span.service, span.node, span.pod, span.pid) == ("", "", "", 0)


def test_an_empty_request_holds_no_spans() -> None:
    """An export without spans is allowed."""
    for request in ({"resourceSpans": []}, {"resourceSpans": [{}]}, {"resourceSpans": [{"scopeSpans": [{}]}]}, {}):
        assert list(decode_spans(request)) == []


MALFORMED: dict[str, Any] = {
    "no start": {"startTimeUnixNano": None},
    "start is text": {"startTimeUnixNano": "soon"},
    "start is negative": {"startTimeUnixNano": -1},
    "start beyond 64 bits": {"startTimeUnixNano": str(2**63)},
    "short trace id": {"traceId": "abc"},
    "no trace id": {"traceId": None},
    "span id not hex": {"spanId": "zzzzzzzzzzzzzzzz"},
    "base64 ids": {"traceId": "Cvdld5Fs1D3YRI6yEcgDGc=="},
    "unknown kind": {"kind": "SPAN_KIND_ODD"},
    "attributes are no list": {"attributes": {"a": 1}},
    "attribute without key": {"attributes": [{"value": {"intValue": 1}}]},
    "attribute integer is text": {"attributes": [{"key": "a", "value": {"intValue": "x"}}]},
    "attribute value is text": {"attributes": [{"key": "a", "value": "x"}]},
    "status is text": {"status": "ERROR"},
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_spans_are_input_errors(change: dict[str, Any]) -> None:
    """A field of a wrong type or form is an input error that says so."""
    with pytest.raises(InputError, match=r"not OTLP spans: ."):
        list(decode_spans(span_request({**raw_span(), **change})))


@pytest.mark.parametrize(
    "request_",
    [
        {"resourceSpans": 3},
        {"resourceSpans": [3]},
        {"resourceSpans": [{"scopeSpans": ["x"]}]},
        {"resourceSpans": [{"scopeSpans": [{"spans": [3]}]}]},
        {"resourceSpans": [{"resource": "x", "scopeSpans": []}]},
    ],
)
def test_malformed_requests_are_input_errors(request_: dict[str, Any]) -> None:
    """Another shape where objects and lists belong is an input error."""
    with pytest.raises(InputError):
        list(decode_spans(request_))


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["key", "value", "stringValue", "intValue", "values"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.sampled_from(["traceId", "spanId", "parentSpanId", "kind", "startTimeUnixNano", "endTimeUnixNano", "attributes", "status", "name"]),
    ANY,
)
def test_any_value_in_any_field_is_a_span_or_an_input_error(field: str, value: Any) -> None:
    """Whatever stands in a field, decoding gives spans or an InputError and nothing else."""
    try:
        for span in decode_spans(span_request({**raw_span(), field: value})):
            assert span.end_unix_ns >= span.start_unix_ns
    except InputError:
        pass


@pytest.mark.parametrize(
    ("attribute", "value", "role", "expected"),
    [
        ("llm.slo.ttft_ms", 320, "ttft_ms", 320),
        ("gen_ai.server.time_to_first_token", 0.32, "ttft_ms", 320),
        ("gen_ai.latency.time_to_first_token", 0.32, "ttft_ms", 320),
        ("gen_ai.response.time_to_first_chunk", 0.32, "ttft_ms", 320),
        ("gen_ai.usage.output_tokens", 24, "output_tokens", 24),
        ("gen_ai.usage.completion_tokens", 24, "output_tokens", 24),
        ("http.response.status_code", 503, "status_code", 503),
        ("http.status_code", 503, "status_code", 503),
        ("gen_ai.provider.name", "openai", "provider", "openai"),
        ("gen_ai.system", "openai", "provider", "openai"),
        ("net.sock.peer.port", 443, "peer_port", 443),
    ],
)
def test_alias_table(attribute: str, value: Any, role: str, expected: Any) -> None:
    """Old and new spellings of the field mean the same, in our unit."""
    assert one_span(attrs={attribute: value}).read(role) == expected


def test_the_first_alias_that_is_present_wins() -> None:
    """Our own name comes before the conventions; an empty one counts as absent."""
    assert one_span(attrs={"gen_ai.server.time_to_first_token": 9.0, "llm.slo.ttft_ms": 5}).read("ttft_ms") == 5
    assert one_span(attrs={"llm.request_id": "", "gen_ai.request.id": "g"}).read("request_id") == "g"
    assert one_span().read("request_id") is None


def test_what_is_forgotten_is_not_told_under_any_name() -> None:
    """All names of one meaning go, and nothing else; what was not told can be forgotten too."""
    span = one_span(attrs={"network.local.port": 1, "net.sock.host.port": 2, "server.port": 3})
    span.forget("local_port")
    span.forget("ttft_ms")
    assert span.read("local_port") is None and span.attributes == {"server.port": 3}


@pytest.mark.parametrize("value", ["fast", True, float("nan"), float("inf")])
def test_number_takes_finite_numbers_only(value: Any) -> None:
    """Text, booleans and non-finite numbers are no measurement."""
    span = one_span()
    span.attributes["llm.slo.ttft_ms"] = value
    assert span.number("ttft_ms") is None


def test_what_a_span_does() -> None:
    """Retrieval by name or operation; generation is a client span with a GenAI operation; both talk to somebody."""
    assert one_span(name="chat.retrieval", kind=1).is_retrieval
    assert one_span(name="x", attrs={"gen_ai.operation.name": "retrieval"}).is_retrieval
    assert one_span(kind=3, attrs={"gen_ai.operation.name": "chat"}).is_generation
    assert not one_span(kind=2, attrs={"gen_ai.operation.name": "chat"}).is_generation
    assert [one_span(kind=kind).does_network_work for kind in (1, 2, 3)] == [False, False, True]
    assert one_span(name="chat.retrieval", kind=1).does_network_work


def test_parent_ids_are_written_like_span_ids() -> None:
    """An upper-case parent id meets the span it names."""
    assert one_span(parent="B7AD6B7169203331").parent_span_id == "b7ad6b7169203331"


def test_span_line_adds_and_replaces_attributes_and_keeps_the_rest() -> None:
    """The enriched line decodes to the same span with the extra attributes; nothing else of it is lost."""
    raw = {**raw_span(attrs={"a": 1, "llm.ebpf.dns.latency_ms": 1.0}), "links": [{"traceId": TRACE}], "traceState": "x=1"}
    (span,) = decode_spans(span_request(raw))
    line = span_line(span, {"llm.ebpf.dns.latency_ms": 212.5, "n": 3, "b": True, "s": "t"})
    (again,) = decode_spans(line)
    assert again.attributes == {"a": 1, "llm.ebpf.dns.latency_ms": 212.5, "n": 3, "b": True, "s": "t"}
    assert again.raw["links"] == raw["links"] and again.raw["traceState"] == "x=1"
    assert (again.service, again.scope, again.trace_id) == (span.service, span.scope, span.trace_id)
    assert span.attributes["llm.ebpf.dns.latency_ms"] == 1.0  # the original is untouched


def test_otlp_values_are_typed() -> None:
    """Booleans are no integers, and integers travel as strings."""
    assert [otlp_value(value) for value in (True, 5, 2.5, "x", None)] == [
        {"boolValue": True},
        {"intValue": "5"},
        {"doubleValue": 2.5},
        {"stringValue": "x"},
        {"stringValue": "None"},
    ]


@pytest.mark.parametrize("number", ["1" + "0" * 400, str(1 << 63), -(1 << 63) - 1])
def test_an_integer_of_more_than_64_bits_is_none(number: object) -> None:
    """OTLP has no such number."""
    raw = raw_span()
    raw["attributes"] = [{"key": "llm.slo.ttft_ms", "value": {"intValue": number}}]
    with pytest.raises(InputError, match="not OTLP spans"):
        list(decode_spans(span_request(raw)))


@pytest.mark.parametrize("levels", [100, 2000])
def test_what_is_nested_without_end_is_bad_input(levels: int) -> None:
    """Read or not: what cannot be written again is refused with its request."""
    value: dict[str, Any] = {"stringValue": "x"}
    for _ in range(levels):
        value = {"arrayValue": {"values": [value]}}
    raw = raw_span()
    raw["attributes"] = [{"key": "deep", "value": value}]
    with pytest.raises(InputError):
        _spans_of(span_request(raw))


@pytest.mark.parametrize(("value", "number"), [(1, 1.0), (2.5, 2.5), (True, None), ("1", None), (None, None), (10**400, None), ([1], None)])
def test_finite_numbers(value: object, number: float | None) -> None:
    """What is none is missing; NaN and infinity are none."""
    assert finite(value) == number
    assert finite(float("nan")) is None and finite(float("-inf")) is None


def test_a_rate_that_is_none_is_left_out() -> None:
    """Tokens over next to no time: more than a number can say."""
    attrs = {"llm.slo.ttft_ms": 1.0, "gen_ai.usage.output_tokens": 1e306}
    names = [event["sli_name"] for event in slo_events_from_span(one_span(T0, T0 + 2 * MS, kind=2, attrs=attrs), "c")]
    assert names == ["ttft_ms", "request_latency_ms", "error_rate"]


@pytest.mark.parametrize(
    ("about", "pod"),
    [
        ({"k8s.pod.name": "rag-0", "k8s.pod.uid": "u", "service.instance.id": "i"}, "rag-0"),
        ({"k8s.pod.uid": "u"}, "u"),
        ({"service.instance.id": "627cc493-f310-47de-96bd-71410b7dec09"}, ""),
    ],
)
def test_a_pod_is_what_the_kernel_side_can_know(about: dict[str, str], pod: str) -> None:
    """An instance id is the SDK's own invention: a signal on a plain host, which has no pod, must still find the span by its pid."""
    assert one_span(resource={"service.name": "rag", **about}).pod == pod
