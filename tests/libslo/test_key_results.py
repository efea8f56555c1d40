"""Key results: joins against connections, burn rates against what clients felt, the trivial detector; the page says what was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import MS, ROOT, T0, TESTDATA, S, probe, raw_span, span_id, span_request, trace_id

from libslo.attribution import load_model
from libslo.bench.burns import BurnPrediction, burn_predictions, felt_burn_rate, missed_objective, relative_errors
from libslo.bench.first_bad import FirstBad, first_bad
from libslo.bench.joins import JoinCounts, judge_joins
from libslo.bench.key_facts import recording_joins, set_digest
from libslo.bench.key_results import ROWS, main
from libslo.bench.recorded import model_provenance
from libslo.cases import find_recordings
from libslo.recordings import Recording
from libslo.signals import Objective
from libslo.spans import KIND_SERVER, Span, decode_spans

PAGE = ROOT / "docs" / "key-results.md"
OBJECTIVES = {"ttft_ms": Objective(500, 0.95), "error_rate": Objective(0.05, 0.95)}


# --- joins


def spans_of(*rows: tuple[int, int, int, int | None]) -> list[Span]:
    """(trace, begin ms, end ms, local port): a request each, and in it a call from that port."""
    found: list[Span] = []
    for number, (trace, begin, end, port) in enumerate(rows):
        request = raw_span(T0 + begin * MS, T0 + end * MS, trace=trace_id(trace), span=span_id(2 * number + 1), kind=KIND_SERVER)
        found += decode_spans(span_request(request))
        if port is not None:
            attributes = {
                "network.local.address": "10.0.0.1",
                "network.local.port": port,
                "network.peer.address": "10.0.0.2",
                "network.peer.port": 80,
            }
            call = raw_span(
                T0 + (begin + 1) * MS, T0 + end * MS, trace=trace_id(trace), span=span_id(2 * number + 2), kind=3, attrs=attributes
            )
            found += decode_spans(span_request(call))
    return found


def event(at_ms: int, port: int, trace: int | None = None, span: int = 0, confidence: float = 0.9, **more: Any) -> dict[str, Any]:
    conn = {"src_ip": "10.0.0.1", "src_port": port, "dst_ip": "10.0.0.2", "dst_port": 80, "protocol": "tcp"}
    joined = {} if trace is None else {"trace_id": trace_id(trace), "span_id": span_id(span), "confidence": confidence}
    return probe(T0 + at_ms * MS, "connect_latency_ms", conn_tuple=conn, **joined, **more)


def test_joins_against_connections() -> None:
    """Right span, right trace by another span, wrong trace, not joined, joined too faintly: each counted as what it is."""
    spans = spans_of((1, 0, 100, 4001), (2, 50, 150, 4002))
    events = [
        event(20, 4001, 1, 2),  # right, and its request began last
        event(60, 4001, 1, 1),  # the right request, another span of it
        event(70, 4001, 2, 4),  # the other request
        event(80, 4002),  # not joined; its request began last
        event(90, 4002, 2, 4, 0.65),  # too faint to enrich
        event(95, 4002, 1, 2),  # the other request
    ]
    assert judge_joins(events, spans) == JoinCounts(known=6, joined=4, right_trace=2, right_span=1, latest_right=4, unknown=0)


def test_a_join_that_is_not_told_of_the_port_knows_less() -> None:
    """The same events are judged by the same spans; without their port fewer go to the right request."""
    told, blind = recording_joins(Recording(TESTDATA / "recordings" / "baseline-medium-100"))
    assert (told.known, told.unknown, told.latest_right) == (blind.known, blind.unknown, blind.latest_right)
    assert told.known > 100 and told.right_trace > blind.right_trace > 0


def test_joins_that_nobody_can_judge() -> None:
    """A connection of no span, or of two; events that are none of TCP are not even counted."""
    spans = spans_of((1, 0, 100, 4001), (2, 50, 150, 4001))
    dns = event(20, 53)
    dns["conn_tuple"]["protocol"] = "udp"
    assert judge_joins([event(20, 4001, 1, 2), event(20, 9999), dns, probe(T0)], spans) == JoinCounts(0, 0, 0, 0, 0, 2)
    assert judge_joins([], []) == JoinCounts(0, 0, 0, 0, 0, 0)


# --- burn rates


def request(at_s: float, ttft_ms: float | None = 100.0, **more: Any) -> dict[str, Any]:
    sent = T0 + int(at_s * S)
    token = {} if ttft_ms is None else {"first_token_unix_ns": sent + int(ttft_ms * MS)}
    return {"request_id": "r", "sent_unix_ns": sent, "status": 200, **token, "end_unix_ns": sent + int((ttft_ms or 50.0) * MS), **more}


def test_what_clients_felt() -> None:
    """Of four requests with a token sent in time one was slow: 0.25 / 0.05. Failures count for the error rate only."""
    requests = [request(0), request(1, 600), request(2), request(3), request(4, None, status=503), request(9, 900)]
    assert felt_burn_rate(requests, "ttft_ms", OBJECTIVES["ttft_ms"], T0, T0 + 5 * S) == pytest.approx(5.0)
    assert felt_burn_rate(requests, "error_rate", OBJECTIVES["error_rate"], T0, T0 + 5 * S) == pytest.approx(4.0)
    assert felt_burn_rate(requests, "retrieval_latency_ms", OBJECTIVES["ttft_ms"], T0, T0 + 5 * S) is None
    assert felt_burn_rate([], "ttft_ms", OBJECTIVES["ttft_ms"], T0, T0 + 5 * S) is None
    assert felt_burn_rate(requests, "ttft_ms", Objective(500, 1.0), T0, T0 + 5 * S) is None
    assert missed_objective(request(0, 600), OBJECTIVES) and missed_objective(request(0, None, error="reset"), OBJECTIVES)
    assert not missed_objective(request(0), OBJECTIVES)


def episode(name: str, detected_s: float, requests: int = 10, bad: int = 5, state: str = "open") -> dict[str, Any]:
    at = T0 + int(detected_s * S)
    return {"incident_id": name, "state": state, "sli": "ttft_ms", "detected_unix_nano": at, "requests": requests, "bad_requests": bad}


def incident(name: str, burn: float) -> dict[str, Any]:
    return {"incident_id": name, "slo_impact": {"sli": "ttft_ms", "burn_rate": burn}}


def test_burn_rates_said_and_felt() -> None:
    """The first episode in the fault counts, as it was said first; closings, updates and later episodes do not."""
    requests = [request(s, 600 if s % 2 else 100) for s in range(10)]
    faults = [(T0, T0 + 10 * S)]
    episodes = [episode("a", 2, 99, 99, "closed"), episode("b", 5), episode("a", 2)]
    incidents = [incident("a", 3.5), incident("b", 9.0), incident("a", 7.0)]
    found = list(burn_predictions(faults, episodes, incidents, requests, OBJECTIVES))
    assert found == [BurnPrediction("a", 3.5, pytest.approx(10.0), pytest.approx(10.0))]


def test_errors_are_relative() -> None:
    """12 for 10 and 5 for 10 are 0.2 and 0.5; without a prediction there is no error."""
    assert relative_errors([12, None, 5], [10, 10, 10]) == pytest.approx([0.2, 0.5])
    assert relative_errors([], []) == []


def test_no_burn_rate_to_judge() -> None:
    """No episode in the fault, one without an incident, clients that felt nothing: no prediction."""
    requests = [request(s, 600) for s in range(10)]
    fault = (T0, T0 + 10 * S)
    assert not list(burn_predictions([fault], [episode("a", -1), episode("a", 16)], [incident("a", 3)], requests, OBJECTIVES))
    assert not list(burn_predictions([fault], [episode("a", 2)], [], requests, OBJECTIVES))
    assert not list(burn_predictions([fault], [episode("a", 2)], [incident("a", 3)], [request(1)], OBJECTIVES))
    assert len(list(burn_predictions([fault], [episode("a", 14)], [incident("a", 3)], requests, OBJECTIVES))) == 1


# --- the trivial detector


def test_alarm_at_the_first_bad_request() -> None:
    """From the fault's begin to the end of its first bad request; a bad request in quiet time is an alarm; order does not matter."""
    requests = [request(12), request(11.5, 700), request(10.5, 600), request(2, None, status=500)]
    faults = [(T0 + 10 * S, T0 + 20 * S), (T0 + 30 * S, T0 + 40 * S)]
    quiet = [(T0, T0 + S), (T0 + S, T0 + 9 * S)]
    assert first_bad(faults, quiet, requests, OBJECTIVES) == FirstBad((pytest.approx(1.1), None), (False, True))
    assert first_bad(faults, quiet, reversed(requests), OBJECTIVES).alarmed == (False, True)


# --- the page


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two recordings as a holdout, one as the others, and the page of them."""
    folder = tmp_path_factory.mktemp("sets")
    for place, name in (("h", "dns_latency-high-100"), ("h", "baseline-medium-100"), ("o", "provider_error-high-100")):
        (folder / place).mkdir(exist_ok=True)
        (folder / place / name).symlink_to(TESTDATA / "recordings" / name)
    assert code("--holdout", str(folder / "h"), "--recordings", str(folder / "o"), "--table", str(folder / "new" / "page.md")) == 0
    return folder, (folder / "new" / "page.md").read_text()


def code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def cells(page: str, name: str) -> list[str]:
    return next([cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith(f"| {name} |"))


def test_every_row_is_there(measured: tuple[Path, str]) -> None:
    """All rows with a cell for each column; what neither set has is empty, not zero."""
    _, page = measured
    for row in ROWS:
        assert len(cells(page, row.name)) == 8, row.name
    assert cells(page, "attribution accuracy, mixed: one fault after another")[1:5] == ["–", "–", "–", "–"]  # noqa: RUF001
    assert cells(page, "detection: faults that hurt, missed")[1:5] == ["0.000 [0.000, 0.793]", "1"] * 2
    burn = cells(page, "burn-rate prediction error, since the trouble began")
    assert burn[2] == burn[4] == "1" and 0 <= float(burn[1].split()[0]) < 0.5
    ways = ("spans tell their port", "pod, process and time alone")
    for name in (f"correlation {what}, {told}" for what in ("precision", "recall") for told in ways):
        assert 0 < float(cells(page, name)[1].split()[0]) <= 1


def test_the_page_says_what_benchgen_says(measured: tuple[Path, str], tmp_path: Path) -> None:
    """Every row with a key has the figure that a bundle of the same recordings has at that place."""
    from libslo.bench.bundle import BenchSettings, bench

    folder, page = measured
    bench(BenchSettings(out=str(tmp_path / "b"), recordings=(str(folder / "h"),)), lambda _: None)
    summary = orjson.loads((tmp_path / "b" / "attribution_summary.json").read_bytes())
    compared = 0
    for row in ROWS:
        key = cells(page, row.name)[-1].strip("`")
        figure: Any = summary
        for part in key.replace("0.80", "0_80").split("."):
            figure = (figure or {}).get(part.replace("_80", ".80"))
        value = None if figure is None else figure.get("share", figure.get("value"))
        if value is not None:
            assert cells(page, row.name)[1].startswith(f"{value:.{row.digits}f} ["), row.name
            assert cells(page, row.name)[2] == str(figure["n"])
            compared += 1
    assert compared >= 10


@pytest.mark.slow
def test_same_recordings_same_page(measured: tuple[Path, str]) -> None:
    """Measured again: the same bytes, but for the name of the page in the command."""
    folder, page = measured
    again = folder / "again.md"
    assert code("--holdout", str(folder / "h"), "--recordings", str(folder / "o"), "--table", str(again)) == 0
    assert again.read_text().replace(str(again), "X") == page.replace(str(folder / "new" / "page.md"), "X")


def test_what_cannot_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No recordings there: 2, the fact and the cure; a full disk: 3; no place at all is usage."""
    assert code("--recordings", str(tmp_path), "--table", str(tmp_path / "p.md")) == 2
    assert re.search(r"key_results: .*no recording in it\n  try: ", capsys.readouterr().err)
    place = str(TESTDATA / "recordings" / "baseline-medium-100")
    assert code("--recordings", place, "--table", "/dev/full") == 3
    assert "key_results: /dev/full: cannot write: no space left on device" in capsys.readouterr().err
    assert code("--table", "x") == 2 and not (tmp_path / "p.md").exists()


def test_the_page_in_docs_is_of_this_model_and_these_recordings() -> None:
    """docs/key-results.md names the model and the recordings that are here; otherwise: make key-results."""
    page = PAGE.read_text()
    model = model_provenance("bayes", None, 0.5)
    assert f"sha256 `{model['sha256'][:16]}`" in page
    assert load_model().version in page
    for place in (TESTDATA / "recordings", TESTDATA / "recordings" / "holdout"):
        if any(place.glob("*/manifest.json")):
            hashes = ((path.name, sha256(path / "manifest.json")) for path in find_recordings([place]))
            assert f"digest `{set_digest(hashes)[:16]}`" in page, place


def sha256(path: Path) -> str:
    import hashlib

    Recording(path.parent)  # refuses what is none
    return hashlib.sha256(path.read_bytes()).hexdigest()
