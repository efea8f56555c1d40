"""Benchmark bundles: what the summary says can be computed again from the tables, the page needs nothing else, all of it or nothing."""

from __future__ import annotations

import csv
import errno
import io
import math
import re
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libslo.bench.bundle import bundle_files, write_directory
from libslo.bench.document import Figure, Heading, Paragraph, Table, as_html, as_markdown
from libslo.bench.material import Answer, Material, OverheadRow, Timeline, TruthRow, runs_per_domain
from libslo.bench.plots import thinned
from libslo.bench.recorded import overhead_rows
from libslo.bench.tables import bundle_summary, tables
from libslo.bench.timelines import first_of_each_domain, telling_signals
from libslo.errors import CannotError, InputError
from libslo.evaluation import CLASSES, Prediction, summarize
from libslo.evidence import Evidence

SEED = 42


def material(seed: int = 3, runs: int = 30) -> Material:
    """Made-up answers with all that can occur: right, wrong, unsure, pairs, quiet windows, false alarms, missed faults."""
    rng = np.random.default_rng(seed)
    answers: list[Answer] = []
    truth: list[TruthRow] = []
    overhead: list[OverheadRow] = []
    for number in range(runs):
        run = f"run-{number:02}"
        actual = (CLASSES[number % 8],) if number % 5 else (CLASSES[0], CLASSES[2])
        said = actual[0] if rng.random() < 0.8 else CLASSES[int(rng.integers(8))]
        sure = float(rng.uniform(0.3, 1))
        posteriors = {said: sure, **({actual[-1]: (1 - sure) / 2} if actual[-1] != said else {})}
        delay_s = float(rng.exponential(2))
        prediction = Prediction(f"{run}/0", actual, said, posteriors, tuple(posteriors), CLASSES[int(rng.integers(8))], delay_s, False)
        quiet = Prediction(
            f"{run}/quiet-0", (), "unknown" if rng.random() < 0.9 else said, {"unknown": 0.9}, ("unknown",), "unknown", None, False
        )
        answers += [Answer(prediction, run, "scenario", "low"), Answer(quiet, run, "scenario", "low")]
        found = number % 7 != 0
        truth.append(TruthRow(run, "scenario", "low", "fault", 1000 + number, 7.0, number % 6 != 0, int(found), delay_s if found else None))
        truth.append(TruthRow(run, "scenario", "low", "", None, 9.5, False, int(number % 11 == 0)))
        overhead += [
            OverheadRow(run, "scenario", tool, s, float(rng.uniform(1, 9)), 10**7 + s) for tool in ("agent", "collector") for s in range(5)
        ]
    timeline = Timeline("network_dns", "run-01/0", (-1.5, -0.5, 0.5, 1.5), (("ttft_ms", "ms", (1.0, None, 300.0, 280.0)),), 1.0, 0.7)
    return Material(tuple(answers), tuple(truth), tuple(overhead), "", (timeline,), {"run-00": "abc"}, {"model": {"sha256": "def"}})


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def wilson(right: int, n: int) -> list[float]:
    z, p = 1.959964, right / n
    middle, half = p + z * z / 2 / n, z * math.sqrt(p * (1 - p) / n + (z / 2 / n) ** 2)
    return [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]


def test_the_summary_again_from_the_tables() -> None:
    """Every headline figure of the summary from the CSV files alone, by the shortest route there is."""
    files = tables(material())
    found = bundle_summary(material(), SEED)
    cases = rows(files["incident_predictions.csv"])
    one = [c for c in cases if c["actual"] and "+" not in c["actual"]]
    some = [c for c in cases if c["actual"]]
    right = sum(c["predicted"] == c["actual"] for c in one)
    assert (found["accuracy"]["right"], found["accuracy"]["n"]) == (right, len(one))
    assert found["accuracy"]["wilson95"] == pytest.approx(wilson(right, len(one)), abs=1e-6)
    named = [{d for d in CLASSES if float(c[d]) >= 0.5} or {c["predicted"]} for c in some]
    true = [set(c["actual"].split("+")) for c in some]
    assert found["partial"]["right"] == sum(c["predicted"] in t for c, t in zip(some, true, strict=True))
    assert found["coverage"]["right"] == sum(float(c[d]) >= 0.1 for c, t in zip(some, true, strict=True) for d in t)
    assert found["exact_set"]["right"] == sum(n == t for n, t in zip(named, true, strict=True))
    assert found["jaccard"]["value"] == pytest.approx(
        statistics.mean(len(n & t) / len(n | t) for n, t in zip(named, true, strict=True)), abs=1e-6
    )
    assert found["false_accusations"]["right"] == sum(not c["actual"] and c["predicted"] != "unknown" for c in cases)
    assert found["brier"]["value"] == pytest.approx(
        statistics.mean(sum((float(c[d]) - (d == c["actual"])) ** 2 for d in CLASSES) for c in one), abs=1e-6
    )
    confidence = [
        (min(int(float(c["confidence"]) * 10), 9), float(c["confidence"]), c["predicted"] in t) for c, t in zip(some, true, strict=True)
    ]
    gaps = [abs(sum(r - p for b, p, r in confidence if b == bin_)) for bin_ in range(10)]
    assert found["calibration"]["ece"]["value"] == pytest.approx(sum(gaps) / len(some), abs=1e-6)
    surest = sorted(((p, r) for _, p, r in confidence), reverse=True)[: math.ceil(0.8 * len(some))]
    assert found["at_coverage"]["0.80"]["right"] == sum(r for _, r in surest)
    assert found["delay_s"]["value"] == pytest.approx(statistics.median(float(c["delay_s"]) for c in cases if c["delay_s"]), abs=1e-6)
    majority = Counter(c["actual"] for c in one).most_common(1)[0][1]
    assert found["baselines"]["always_majority"]["accuracy"]["right"] == majority
    assert found["baselines"]["largest_z"]["accuracy"]["right"] == sum(c["largest_z"] == c["actual"] for c in one)
    assert found["runs_per_domain"] == dict(Counter(d for d, _ in {(c["actual"], c["run"]) for c in one}))
    matrix = Counter((c["actual"] or "none", c["predicted"]) for c in cases)
    assert {(r["actual"], r["predicted"]): int(r["count"]) for r in rows(files["confusion-matrix.csv"])} == matrix
    f1 = [float(r["f1"]) for r in rows(files["class_metrics.csv"]) if int(r["support"])]
    assert found["macro_f1"]["value"] == pytest.approx(statistics.mean(f1), abs=1e-6)


def test_detection_and_overhead_again_from_the_tables() -> None:
    """Missed faults, false alarms, delays and costs, from the CSV files alone."""
    files, found = tables(material()), bundle_summary(material(), SEED)
    truth, costs = rows(files["detection.csv"]), rows(files["collector_overhead.csv"])
    hurt = [t for t in truth if t["fault"] and t["moved_sli"] == "1"]
    quiet = [t for t in truth if not t["fault"]]
    detection = found["detection"]
    assert (detection["missed"]["right"], detection["missed"]["n"]) == (sum(t["episodes"] == "0" for t in hurt), len(hurt))
    assert detection["missed"]["right"] > 0
    assert (detection["alarmed_windows"]["right"], detection["alarmed_windows"]["n"]) == (
        sum(t["episodes"] != "0" for t in quiet),
        len(quiet),
    )
    assert detection["moved_no_sli"] == sum(t["fault"] != "" and t["moved_sli"] == "0" for t in truth)
    assert detection["no_fault_s"] == sum(float(t["length_s"]) for t in quiet)
    assert detection["delay_s"]["value"] == pytest.approx(statistics.median(float(t["delay_s"]) for t in truth if t["delay_s"]), abs=1e-6)
    agent = [float(c["node_cpu_pct"]) for c in costs if c["tool"] == "agent"]
    assert found["overhead"]["agent"]["node_cpu_pct"]["value"] == pytest.approx(
        statistics.mean(agent), abs=1e-6
    )  # as many samples in each run
    assert found["overhead"]["collector"]["rss_bytes_max"] == max(int(c["rss_bytes"]) for c in costs if c["tool"] == "collector")


def test_the_whole_summary_again_intervals_too() -> None:
    """Predictions read back from the table give the same summary to the last digit, with the same seed."""
    again = []
    for c in rows(tables(material())["incident_predictions.csv"]):
        posteriors = {d: float(c[d]) for d in CLASSES if float(c[d]) > 0}
        actual = tuple(filter(None, c["actual"].split("+")))
        delay_s = float(c["delay_s"]) if c["delay_s"] else None
        again.append(
            Prediction(c["case"], actual, c["predicted"], posteriors, tuple(posteriors), c["largest_z"], delay_s, c["synthetic"] == "1")
        )
    found = bundle_summary(material(), SEED)
    for key, value in summarize(again, np.random.default_rng(SEED)).items():
        assert found[key] == value, key


def test_same_seed_same_bytes() -> None:
    """Twice the same files; another seed changes intervals only."""
    first, second, other = bundle_files(material(), SEED), bundle_files(material(), SEED), bundle_files(material(), 7)
    assert first == second
    changed = {name for name in first if first[name] != other[name]}
    assert changed == {"attribution_summary.json", "provenance.json", "report.md", "report.html"}
    one, two = (orjson.loads(files["attribution_summary.json"]) for files in (first, other))
    assert (
        one["accuracy"] == two["accuracy"] and one["macro_f1"]["value"] == two["macro_f1"]["value"] and one["macro_f1"] != two["macro_f1"]
    )


def test_the_page_needs_nothing_else() -> None:
    """No address, no script, no file; every drawing's ids are its own, and what refers to one finds it."""
    page = bundle_files(material(), SEED)["report.html"].decode()
    assert not re.search(r"https?:|//\w|<script|<link|<img|src=|@import|url\((?!#)", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 100
    assert set(re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    assert page.count("<svg") == page.count("</svg>") == 5


def test_report_says_the_summarys_figures() -> None:
    """Accuracy, missed faults, wrong answers and the exploratory mark stand in report.md as in the summary."""
    files = bundle_files(material(), SEED)
    summary, text = orjson.loads(files["attribution_summary.json"]), files["report.md"].decode()
    accuracy = summary["accuracy"]
    low, high = accuracy["wilson95"]
    assert f"| accuracy (one fault) | {accuracy['n']} | {accuracy['share']:.3f} [{low:.3f}, {high:.3f}] |" in text
    assert f"missed: {summary['detection']['missed']['right']} of {summary['detection']['missed']['n']}" in text
    assert summary["exploratory"] is True and "EXPLORATORY" in text
    wrong = sum(not (set(a.prediction.actual or ("unknown",)) & {a.prediction.predicted}) for a in material().answers)
    assert f"## Wrong answers: {wrong}\n" in text
    assert "One incident of each domain" not in text  # its drawings are on the page only


def test_ten_runs_of_each_domain_are_no_exploration() -> None:
    """From ten runs of every domain that occurs; nine of one are too few, and so is nothing at all."""
    answers = tuple(
        Answer(Prediction(f"{domain}-{i}", (domain,), domain, {domain: 1.0}, (domain,), "", None, False), f"{domain}-{i}", "", "")
        for domain in CLASSES[:2]
        for i in range(10)
    )
    whole = replace(material(), answers=answers)
    assert runs_per_domain(answers) == {"network_dns": 10, "network_egress": 10}
    assert bundle_summary(whole, SEED)["exploratory"] is False
    assert bundle_summary(replace(whole, answers=answers[1:]), SEED)["exploratory"] is True
    same_run = (*answers[1:], replace(answers[0], run="network_dns-1"))
    assert bundle_summary(replace(whole, answers=same_run), SEED)["exploratory"] is True
    assert bundle_summary(replace(whole, answers=()), SEED)["exploratory"] is True


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_little_is_enough_for_a_bundle(kept: int) -> None:
    """Of nothing, of one case, of one class only: every file, and a report without a figure that is not there."""
    little = replace(material(), answers=material().answers[:kept], truth=(), overhead=(), no_overhead="nobody measured", timelines=())
    files = bundle_files(little, SEED)
    assert len(files) == 9
    assert files["collector_overhead.csv"] == b"run,scenario,tool,ts_unix_nano,node_cpu_pct,rss_bytes\n"
    text = files["report.md"].decode()
    assert "Not measured: nobody measured." in text and not re.search(r"\b(nan|None)\b", text)
    assert orjson.loads(files["provenance.json"])["no_overhead"] == "nobody measured"


@given(st.integers(1, 10_000))
@settings(max_examples=15)
def test_numbers_survive_the_tables(seed: int) -> None:
    """What is read from a table is the number that was written, to the last bit."""
    for read, written in zip(rows(tables(material(seed, 3))["incident_predictions.csv"]), material(seed, 3).predictions, strict=True):
        assert float(read["confidence"]) == written.confidence
        assert {d: float(read[d]) for d in written.posteriors} == written.posteriors


def test_all_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be written leaves nothing behind; what was there stays until the new one is whole."""
    out = tmp_path / "bundle"
    write_directory(out, {"a": b"1"})
    assert (out / "a").read_bytes() == b"1" and [p.name for p in tmp_path.iterdir()] == ["bundle"]
    bad: dict[str, bytes] = {"a": b"2", "no/such/place": b"3"}
    with pytest.raises(InputError, match="cannot write"):
        write_directory(out, bad, replace=True)
    assert (out / "a").read_bytes() == b"1" and [p.name for p in tmp_path.iterdir()] == ["bundle"]
    rename = Path.replace
    for nth in (1, 2):  # the old one cannot be moved away; the new one cannot take its place
        calls: list[Path] = []

        def fails(path: Path, target: Path, nth: int = nth, calls: list[Path] = calls) -> Path:
            calls.append(path)
            if len(calls) == nth:
                raise OSError(errno.EIO, "Input/output error")
            return rename(path, target)

        with monkeypatch.context() as patched, pytest.raises(CannotError, match="input/output error"):
            patched.setattr(Path, "replace", fails)
            write_directory(out, {"a": b"2"}, replace=True)
        assert (out / "a").read_bytes() == b"1" and [p.name for p in tmp_path.iterdir()] == ["bundle"]
    write_directory(out, {"b": b"4"}, replace=True)
    assert [p.name for p in out.iterdir()] == ["b"] and [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_document_forms() -> None:
    """What would be markup is escaped in both forms; a section of drawings only has no heading in Markdown."""
    blocks = [Heading("a < b"), Figure("<svg/>", "seen"), Heading("c"), Paragraph("x & y"), Table(("h|1", "n"), (("<i>", "2"),))]
    page = as_html("t & u", blocks)
    assert "<h2>a &lt; b</h2>" in page and "<p>x &amp; y</p>" in page and '<td class="left">&lt;i&gt;</td><td>2</td>' in page
    assert "<title>t &amp; u</title>" in page and "<svg/>" in page and "<figcaption>seen</figcaption>" in page
    assert as_markdown("t", blocks) == "# t\n\n## c\n\nx & y\n\n| h\\|1 | n |\n| --- | ---: |\n| <i> | 2 |\n"


def test_which_incident_is_shown() -> None:
    """Of each domain the first that was named right; where none was, the first."""

    def answer(case: str, actual: str, said: str) -> Answer:
        return Answer(Prediction(case, (actual,), said, {said: 1.0}, (said,), "", 1.0, False), case, "", "")

    answers = [answer("a", CLASSES[2], CLASSES[1]), answer("b", CLASSES[0], CLASSES[1]), answer("c", CLASSES[0], CLASSES[0])]
    assert [each.prediction.case for each in first_of_each_domain(answers)] == ["c", "a"]


def test_which_signals_are_shown() -> None:
    """Those raised, the highest level and the largest change first; when none was raised, the one that changed most."""

    def seen(signal: str, score: float, level: int) -> Evidence:
        return Evidence(signal, "ebpf", 1.0, 1.0, score, level)

    evidence = [seen("a", 0.2, 0), seen("b", 3.0, 1), seen("c", 2.0, 2), seen("d", 4.0, 1), seen("e", 1.1, 1)]
    assert telling_signals(evidence) == ["c", "d", "b"] and telling_signals(evidence[:2]) == ["b"]
    assert telling_signals(evidence[:1]) == ["a"] and telling_signals([]) == []


@pytest.mark.slow
def test_many_cases_make_no_huge_page() -> None:
    """Of 2,000 faults: few dots are drawn, the page stays below a megabyte."""
    page = bundle_files(material(9, 2000), SEED)["report.html"].decode()
    assert len(page) < 1_000_000 and page.count("<use") < 4000
    assert thinned([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    many = thinned([float(i) for i in range(5000)])
    assert len(many) == len(set(many)) == 200 and (many[0], many[-1]) == (0.0, 4999.0) and many == sorted(many)


def test_counts_of_what_was_left_out_are_said() -> None:
    """What gave no answer is counted in the summary and said in the report."""
    some: Any = replace(material(), left_out={"faults_without_incident": 3})
    files = bundle_files(some, SEED)
    assert orjson.loads(files["attribution_summary.json"])["left_out"] == {"faults_without_incident": 3}
    assert "Left out: 3 faults without incident." in files["report.md"].decode()


def test_overhead_from_sample_to_sample(tmp_path: Path) -> None:
    """Half a CPU of two for a second is 25 %; what was used before the first phase, and by another process of the tool, is not counted."""
    from libslo.recordings import Recording, RecordingWriter

    def sample(at_s: int, pid: int, cpu_s: float, rss: int = 5) -> dict[str, Any]:
        return {"ts_unix_nano": at_s * 10**9, "overhead_of": "agent", "pid": pid, "cpu_s": cpu_s, "rss_bytes": rss}

    samples = [sample(1, 7, 9.0), sample(2, 7, 10.0), sample(3, 7, 10.5, 6), sample(4, 8, 0.1), sample(5, 8, 0.1), sample(9, 8, 8.0)]
    phases = [{"name": "baseline", "step": -1, "scenarios": [], "begin_unix_nano": 2 * 10**9, "end_unix_nano": 6 * 10**9}]
    with RecordingWriter(tmp_path / "r", {"phases": phases}) as writer:
        writer.file("overhead-sample", "about").write(b"".join(orjson.dumps(each) + b"\n" for each in samples), len(samples))
    recording = Recording(tmp_path / "r")
    recording.manifest["machine"]["cpus"] = 2
    found = [(row.ts_unix_ns, row.node_cpu_pct, row.rss_bytes) for row in overhead_rows("r", "s", recording)]
    assert found == [(3 * 10**9, 25.0, 6), (5 * 10**9, 0.0, 5)]
