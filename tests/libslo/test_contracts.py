"""Contracts: the good are taken, the bad refused with the key named, and the public ones are exactly what was released."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import pytest
import yaml
from builders import TESTDATA, probe, raw_sample, slo_event
from hypothesis import given
from hypothesis import strategies as st

from libslo.config import config_schema
from libslo.contracts import CONTRACTS, OTLP_SPANS, batch_check, contract, explain, nearest, schema_path, schema_validator

GOOD = sorted((TESTDATA / "contracts" / "good").glob("*/*"))
BAD = sorted((TESTDATA / "contracts" / "bad").glob("*/*"))
NAMES = [*CONTRACTS, "toolkit"]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) if path.suffix == ".yaml" else orjson.loads(path.read_bytes())


def schema_of(name: str) -> dict[str, Any]:
    return config_schema() if name == "toolkit" else contract(name).schema


def case_id(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", GOOD, ids=case_id)
def test_good_examples_are_valid(path: Path) -> None:
    """Every example under good/ keeps its contract, and there is nothing to explain."""
    schema, value = schema_of(path.parent.name), load(path) or {}
    assert schema_validator(schema)(value)
    assert explain(value, schema) == ""


@pytest.mark.parametrize("path", BAD, ids=case_id)
def test_bad_examples_are_refused_and_the_key_is_named(path: Path) -> None:
    """Every example under bad/ is refused, and the sentence about it names the key that its file name ends in."""
    schema, value = schema_of(path.parent.name), load(path)
    assert not schema_validator(schema)(value)
    sentence = explain(value, schema)
    assert path.stem.split("-", 1)[1] in sentence
    assert sentence == sentence.rstrip(".") and not sentence[0].isupper()


@pytest.mark.parametrize("name", NAMES)
def test_every_contract_has_good_and_bad_examples(name: str) -> None:
    """A contract comes with at least two good examples and five bad ones, and no example is of an unknown contract."""
    assert sum(path.parent.name == name for path in GOOD) >= 2
    assert sum(path.parent.name == name for path in BAD) >= 5
    assert {path.parent.name for path in [*GOOD, *BAD]} == set(NAMES)


def objects_in(schema: Any) -> list[dict[str, Any]]:
    found = []
    if isinstance(schema, dict):
        if "properties" in schema:
            found.append(schema)
        for value in schema.values():
            found += objects_in(value)
    elif isinstance(schema, list):
        for value in schema:
            found += objects_in(value)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_no_object_allows_a_further_property(name: str) -> None:
    """Every object of every schema, nested ones included, is closed."""
    found = objects_in(schema_of(name))
    assert found and all(each["additionalProperties"] is False for each in found)


SLI_NAMES = {"ttft_ms", "request_latency_ms", "token_throughput_tps", "error_rate", "retrieval_latency_ms", "provider_error_rate"}
FAULT_DOMAINS = {
    "network_dns",
    "network_egress",
    "cpu_throttle",
    "memory_pressure",
    "provider_throttle",
    "provider_error",
    "retrieval_backend",
    "unknown",
}
SIGNALS = {
    "dns_latency_ms",
    "tcp_retransmits_total",
    "runqueue_delay_ms",
    "connect_latency_ms",
    "connect_errors_total",
    "tls_handshake_ms",
    "tls_handshake_fail_total",
    "cpu_steal_pct",
    "cfs_throttled_ms",
    "mem_reclaim_latency_ms",
    "disk_io_latency_ms",
    "syscall_latency_ms",
}
RELEASED: dict[str, tuple[str, str]] = {
    "slo-event": (
        "event_id timestamp cluster namespace workload service request_id sli_name sli_value unit status",
        "trace_id labels",
    ),
    "incident-attribution": (
        "incident_id timestamp cluster service predicted_fault_domain confidence evidence slo_impact",
        "namespace trace_ids request_ids fault_hypotheses",
    ),
    "probe-event": (
        "ts_unix_nano signal node namespace pod container pid tid value unit status",
        "conn_tuple trace_id span_id errno confidence service workload attributes",
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_keys_are_exactly_the_released_ones(name: str) -> None:
    """Required and optional keys of the public contracts never change: a change is a new version beside them."""
    required, optional = (set(words.split()) for words in RELEASED[name])
    schema = contract(name).schema
    assert set(schema["required"]) == required == contract(name).required
    assert set(schema["properties"]) == required | optional


def test_enums_are_exactly_the_released_ones() -> None:
    """SLI names, statuses, fault domains, evidence sources and signals are the words of the design."""
    event, incident, measured = (contract(name).schema["properties"] for name in RELEASED)
    assert set(event["sli_name"]["enum"]) == SLI_NAMES
    assert set(event["status"]["enum"]) == {"ok", "warning", "breach"}
    assert set(incident["predicted_fault_domain"]["enum"]) == FAULT_DOMAINS
    assert set(incident["fault_hypotheses"]["items"]["properties"]["domain"]["enum"]) == FAULT_DOMAINS
    assert set(incident["evidence"]["items"]["properties"]["source"]["enum"]) == {"ebpf", "otel", "kubernetes", "application"}
    assert set(measured["signal"]["enum"]) == SIGNALS
    assert set(measured["status"]["enum"]) == {"ok", "warning", "error"}
    assert set(measured["conn_tuple"]["properties"]) == {"src_ip", "dst_ip", "src_port", "dst_port", "protocol"}
    assert set(incident["slo_impact"]["required"]) == {"sli", "burn_rate", "window_minutes"}
    assert incident["slo_impact"]["properties"]["window_minutes"]["minimum"] == 1
    assert (incident["confidence"]["minimum"], incident["confidence"]["maximum"]) == (0, 1)


def test_markers_tell_contracts_apart() -> None:
    """The marker of a contract is required by it and is no key of any other contract."""
    for name in CONTRACTS:
        marker = contract(name).marker
        assert marker in contract(name).required
        for other in CONTRACTS:
            assert other == name or marker not in contract(other).schema["properties"], (name, other)


def test_schemas_say_who_they_are() -> None:
    """Each schema is of draft 2020-12, and its title names the contract and the version that its directory says."""
    for name, place in CONTRACTS.items():
        schema = contract(name).schema
        assert schema["$schema"].endswith("2020-12/schema")
        assert schema["title"] == f"{name} {place.split('/')[0]}"
        assert schema_path(name).name == f"{name}.schema.json"


def test_nearest_finds_the_contract_that_was_meant() -> None:
    """An object that lacks its marker is recognised by the other keys; a stranger is nobody's."""
    event = slo_event()
    del event["sli_name"]
    assert nearest(event, CONTRACTS) == "slo-event"
    sample = raw_sample()
    del sample["ttft_ms"]
    assert nearest(sample, CONTRACTS) == "raw-sample"
    assert nearest({"hello": 1}, CONTRACTS) is None
    assert nearest({}, [OTLP_SPANS]) is None


def test_unknown_contract_is_a_key_error() -> None:
    """A contract that does not exist is the programmer's mistake."""
    with pytest.raises(KeyError):
        contract("slo-events")


def test_explain_is_short_and_says_the_path() -> None:
    """The sentence carries the path of the key and cuts long values."""
    schema = contract("slo-event").schema
    sentence = explain(slo_event(status="x" * 10_000), schema)
    assert sentence.startswith("status: 'xxx") and len(sentence) < 400
    assert explain(slo_event(labels={"a": 1}), schema) == "labels.a: 1 is not of type string"
    assert explain(slo_event(b=1, a=2), schema) == "unknown key a, b"
    assert explain({**slo_event(), "status": "bad"}, schema) == "status: 'bad' is none of ok, warning, breach"


def test_explain_says_a_broken_bound_plainly() -> None:
    """A number out of bounds is explained as a sentence, not as a quoted one."""
    sentence = explain(probe(value=-1), contract("probe-event").schema)
    assert sentence == "value: -1 is less than the minimum of 0"


def test_formats_agree_with_what_the_toolkit_can_read() -> None:
    """A timestamp without an offset, with a space or in words is no date-time; offsets and fractions are."""
    is_valid = contract("slo-event").is_valid
    for good in ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00.123456789Z", "2026-01-01T05:30:00+05:30"):
        assert is_valid(slo_event(timestamp=good)), good
    for bad in (
        "2026-01-01T00:00:00",
        "2026-01-01 00:00:00Z",
        "2026-02-30T00:00:00Z",
        "now",
        "",
        "2026-0,-01T00:00:00Z",
        "202,-01-01T00:00:00Z",
        "2-26-01-01T00:00:00Z",
    ):
        assert not is_valid(slo_event(timestamp=bad)), bad


def spoil(value: Any, data: st.DataObject) -> Any:
    """The value with a key or an item less, one more, or another one, somewhere in it."""
    if not isinstance(value, dict | list) or data.draw(st.integers(0, 3)) == 0:
        return data.draw(st.sampled_from([None, True, 0, -1, 1.5, "", "x", "ok", [], {}]))
    places = list(value) if isinstance(value, dict) else list(range(len(value)))
    where = data.draw(st.sampled_from([*places, None]))
    if where is None:
        return {**value, "other": 1} if isinstance(value, dict) else [*value, {}]
    if data.draw(st.booleans()):
        kept = [place for place in places if place != where]
        return {key: value[key] for key in kept} if isinstance(value, dict) else [value[key] for key in kept]
    spoilt = dict(value) if isinstance(value, dict) else list(value)
    spoilt[where] = spoil(value[where], data)
    return spoilt


@given(st.sampled_from([*GOOD, *BAD]), st.data())
def test_the_check_of_a_stream_is_that_of_the_schema(path: Path, data: st.DataObject) -> None:
    """The schema as it is compiled for speed takes and refuses what the schema as it is written does."""
    schema, value = schema_of(path.parent.name), load(path)
    for _ in range(data.draw(st.integers(0, 2))):
        value = spoil(value, data)
    assert schema_validator(schema)(value) is jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(value)


@given(st.sampled_from([path for path in GOOD if path.parent.name != "toolkit"]), st.integers(0, 4), st.data())
def test_a_batch_is_valid_when_every_object_is(path: Path, place: int, data: st.DataObject) -> None:
    """One that breaks the contract, wherever it is among good ones, is found."""
    name, good = path.parent.name, load(path)
    other = spoil(good, data)
    batch = [good] * 4
    assert batch_check(name)(batch) and batch_check(name)([])
    batch.insert(place, other)
    assert batch_check(name)(batch) is contract(name).is_valid(other)


@pytest.mark.parametrize("value", [{}, {"a": 1}, {"b": 2}, {"a": 1, "b": 2}, {"a": 1, "c": 3}, {"a": 1, "b": 2, "c": 3}, [], 1])
@pytest.mark.parametrize(
    "more", [{}, {"minProperties": 3}, {"patternProperties": {"c": {}}}, {"required": ["a"]}, {"additionalProperties": True}]
)
def test_keys_are_counted_only_where_counting_is_enough(value: Any, more: dict[str, Any]) -> None:
    """Where a further keyword says which keys there may be, the required ones are looked for."""
    schema = {"additionalProperties": False, "required": ["a", "b"], "properties": {"a": {}, "b": {}}, **more}
    assert schema_validator(schema)(value) is jsonschema_rs.validator_for(schema).is_valid(value)


def test_what_a_schema_holds_as_a_value_stays_as_it_is() -> None:
    """A constant that looks like a schema is a constant."""
    constant = {"additionalProperties": False, "required": ["a"], "properties": {"a": {}}}
    assert schema_validator({"const": constant})(constant)
    assert schema_validator({"enum": [constant]})(constant)
