"""Recordings: what went in comes out in its order; what is unfinished, damaged or too new is refused with place and cure."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import T0, S, lines, probe, raw_sample, raw_span, slo_event, span_request
from hypothesis import given
from hypothesis import strategies as st

from libslo.contracts import contract
from libslo.errors import CannotError, InputError
from libslo.jsonl import decode_lines
from libslo.recordings import FORMAT, Recorder, Recording, RecordingWriter, kind_of

CONSUMES = ("raw-sample", "probe-event", "otlp-spans", "stream-time")
LINES = lines([raw_sample(), probe(T0), probe(T0 + 1), span_request(raw_span()), slo_event(), {"hello": 1}]).splitlines(keepends=True)


def made(directory: Path, data: list[bytes] = LINES, **about: Any) -> Path:
    """A recording of these lines, each a batch of its own."""
    with RecordingWriter(directory, about) as writer:
        recorder = Recorder(writer)
        for number, line in enumerate(data):
            recorder.records(decode_lines([line.rstrip(b"\n")], CONSUMES), T0 + number * S)
    return directory


def test_what_went_in_comes_out_in_its_order(tmp_path: Path) -> None:
    """Lines of every contract and of none, with the times at which they came."""
    recording = Recording(made(tmp_path / "r"))
    assert list(recording.input()) == [(T0 + number * S, line) for number, line in enumerate(LINES)]
    assert sorted(recording.kinds("input")) == ["other", "probe-event", "raw-sample", "slo-event", "spans"]
    assert list(recording.lines("probe-event")) == LINES[1:3]
    assert all(row["valid"] for row in recording.verdicts())


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=12), st.lists(st.integers(0, 20), max_size=3))
def test_any_order_and_any_batches(tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int]], ticks: list[int]) -> None:
    """However lines and moments of time are mixed: the same sequence."""
    directory = tmp_path_factory.mktemp("r") / "new"
    expected: list[tuple[int, bytes]] = []
    with RecordingWriter(directory) as writer:
        recorder = Recorder(writer)
        for number, (which, count) in enumerate(runs):
            batch = [LINES[(which + i) % len(LINES)] for i in range(count)]
            recorder.records(decode_lines([line.rstrip(b"\n") for line in batch], CONSUMES), T0 + number)
            expected += [(T0 + number, line) for line in batch]
            if number in ticks:
                recorder.time(T0 + number)
                expected.append((T0 + number, b'{"stream_unix_nano":%d}\n' % (T0 + number)))
    assert list(Recording(directory).input()) == expected


def test_kinds_choose(tmp_path: Path) -> None:
    """Only the kinds asked for; an unknown one is named with those there are."""
    recording = Recording(made(tmp_path / "r"))
    assert [line for _, line in recording.input(["probe-event", "spans"])] == LINES[1:4]
    with pytest.raises(InputError, match="no fault-window in the recorded input") as caught:
        list(recording.input(["fault-window"]))
    assert "probe-event" in str(caught.value.hint)


def test_spans_by_http_are_the_line_they_would_have_been(tmp_path: Path) -> None:
    """An OTLP request is kept in its JSON form."""
    with RecordingWriter(tmp_path / "r") as writer:
        Recorder(writer).spans(span_request(raw_span()), T0)
    assert [line for _, line in Recording(tmp_path / "r").input()] == [LINES[3]]


def test_the_manifest_says_what_and_where(tmp_path: Path) -> None:
    """It keeps its contract: machine, revision, counts and hashes; no host name unless it is given."""
    about = {
        "scenario": "dns_latency",
        "severity": "medium",
        "seed": 42,
        "phases": [{"name": "fault", "begin_unix_nano": 1, "end_unix_nano": 2}],
    }
    manifest = orjson.loads((made(tmp_path / "r", **about) / "manifest.json").read_bytes())
    assert contract("recording-manifest").is_valid(manifest) and manifest["recording_format"] == FORMAT
    assert manifest.items() >= about.items() and "host" not in manifest
    row = next(row for row in manifest["files"] if row["name"] == "probe-event.jsonl.gz")
    unpacked = gzip.decompress((tmp_path / "r" / row["name"]).read_bytes())
    assert (row["lines"], row["sha256"], row["role"]) == (2, hashlib.sha256(unpacked).hexdigest(), "input")
    assert manifest["machine"]["cpus"] >= 1 and manifest["machine"]["memory_bytes"] > 1 << 20


def test_the_same_lines_are_the_same_bytes(tmp_path: Path) -> None:
    """Nothing of the time or the place is in the packed files."""
    one, two = made(tmp_path / "a"), made(tmp_path / "deep" / "b")
    assert {path.name: path.read_bytes() for path in one.iterdir()} == {path.name: path.read_bytes() for path in two.iterdir()}


def test_what_is_wrong_about_a_run_is_said(tmp_path: Path) -> None:
    """Facts that the manifest's contract refuses leave no manifest."""
    with pytest.raises(InputError, match="severity"):
        made(tmp_path / "r", severity="mild")
    with pytest.raises(InputError, match="unfinished"):
        Recording(tmp_path / "r")


def test_a_run_that_breaks_off_leaves_no_manifest(tmp_path: Path) -> None:
    """An exception on the way, or a kill: the files are there, and the directory is refused as unfinished."""
    with pytest.raises(RuntimeError), RecordingWriter(tmp_path / "r") as writer:
        Recorder(writer).records(decode_lines([LINES[1].rstrip()], CONSUMES), T0)
        raise RuntimeError
    assert (tmp_path / "r" / "probe-event.jsonl.gz").exists()
    with pytest.raises(InputError, match="an unfinished recording") as caught:
        Recording(tmp_path / "r")
    assert "record again" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (lambda d: None, "no such file"),
        (lambda d: d.mkdir(), "no recording"),
        (lambda d: d.write_bytes(b""), "not a directory"),
        (lambda d: (d.mkdir(), (d / "manifest.json").write_bytes(b"{")), "not JSON"),
        (lambda d: (d.mkdir(), (d / "manifest.json").write_bytes(b"[]")), "not a valid recording-manifest"),
        (lambda d: (d.mkdir(), (d / "manifest.json").write_bytes(b'{"recording_format":%d}' % (FORMAT + 1))), "reads up to"),
        (lambda d: (d.mkdir(), (d / "manifest.json").write_bytes(b'{"recording_format":1}')), "missing"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, make: Any, fact: str) -> None:
    """Each with its place and a cure."""
    make(tmp_path / "r")
    with pytest.raises(InputError, match=fact) as caught:
        Recording(tmp_path / "r")
    assert str(tmp_path / "r") in str(caught.value.source) and caught.value.hint


def damage(directory: Path, how: str) -> None:
    path = directory / "probe-event.jsonl.gz"
    whole = path.read_bytes()
    match how:
        case "missing":
            path.unlink()
        case "truncated":
            path.write_bytes(whole[:-9])
        case "no gzip":
            path.write_bytes(b"x" * 100)
        case "shorter":
            path.write_bytes(gzip.compress(LINES[1], mtime=0))
        case "other bytes":
            path.write_bytes(gzip.compress(LINES[1] + LINES[1], mtime=0))


@pytest.mark.parametrize(
    ("how", "fact"),
    [
        ("missing", "no such file"),
        ("truncated", "cannot unpack"),
        ("no gzip", "cannot unpack"),
        ("shorter", "1 lines, where the manifest says 2"),
    ],
)
def test_damage_is_found_while_reading(tmp_path: Path, how: str, fact: str) -> None:
    """A file that is gone, cut, no gzip, or short: InputError with its path, and a verdict against it."""
    directory = made(tmp_path / "r")
    damage(directory, how)
    recording = Recording(directory)
    with pytest.raises(InputError) as caught:
        list(recording.lines("probe-event"))
    assert fact in caught.value.fact and caught.value.source == str(directory / "probe-event.jsonl.gz") and caught.value.hint
    assert [row["file"].endswith("probe-event.jsonl.gz") for row in recording.verdicts() if not row["valid"]] == [True]


def test_other_bytes_are_found_by_their_hash(tmp_path: Path) -> None:
    """As many lines, but not those: only the hash can tell, and it does."""
    directory = made(tmp_path / "r")
    damage(directory, "other bytes")
    (bad,) = [row for row in Recording(directory).verdicts() if not row["valid"]]
    assert "sha256" in bad["reason"]


def test_more_arrivals_than_lines_are_an_error(tmp_path: Path) -> None:
    """Arrivals that speak of lines that are not there."""
    directory = made(tmp_path / "r")
    with RecordingWriter(tmp_path / "w") as writer:
        writer.file("recording-arrival", "arrivals", "arrivals").write(b'{"arrival_unix_nano":1,"contract":"probe-event","lines":1}\n', 1)
    assert Recording(directory).has("arrivals")
    with pytest.raises(InputError, match="more probe-event arrived"):
        list(Recording(tmp_path / "w").input())


def test_a_directory_in_use_is_not_recorded_into(tmp_path: Path) -> None:
    """Nothing is mixed or overwritten."""
    made(tmp_path / "r")
    with pytest.raises(InputError, match="cannot record") as caught:
        RecordingWriter(tmp_path / "r")
    assert "new directory" in str(caught.value.hint)
    (tmp_path / "r" / "manifest.json").unlink()
    with pytest.raises(InputError, match="cannot record"):
        RecordingWriter(tmp_path / "r")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot record"):
        RecordingWriter(tmp_path / "file")


def test_other_files_are_left_alone_and_a_recording_is_extended(tmp_path: Path) -> None:
    """Into the directory of a run, whose own files stay; the runner adds them afterwards, and facts about the run."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "collector.log").write_text("x")
    made(run, seed=7)
    (run / "fault-window.jsonl").write_bytes(b'{"x":1}\n')
    with RecordingWriter(run, {"scenario": "dns_latency"}, extend=True) as writer:
        with pytest.raises(InputError, match="unfinished"):
            Recording(run)
        writer.add(run / "fault-window.jsonl", "fault-window", "truth", remove=True)
    recording = Recording(run)
    assert (recording.manifest["seed"], recording.manifest["scenario"]) == (7, "dns_latency")
    assert [line for _, line in recording.input()] == LINES and all(row["valid"] for row in recording.verdicts())
    assert (run / "collector.log").exists() and not (run / "fault-window.jsonl").exists() and recording.has("fault-window")
    with pytest.raises(InputError, match="no such file"):
        RecordingWriter(tmp_path / "none", extend=True)
    assert not (tmp_path / "none").exists()


def test_files_are_added_and_recordings_adopted(tmp_path: Path) -> None:
    """A runner's recording takes the collector's over and packs what other tools wrote beside it."""
    inner = made(tmp_path / "inner")
    (tmp_path / "fault.jsonl").write_bytes(b'{"x":1}\n{"x":2}')
    (tmp_path / "joined.jsonl.gz").write_bytes(gzip.compress(LINES[4]))
    with RecordingWriter(tmp_path / "whole", {"scenario": "dns_latency"}) as writer:
        writer.adopt(inner)
        writer.add(tmp_path / "fault.jsonl", "fault-window", "truth")
        writer.add(tmp_path / "joined.jsonl.gz", "slo-event", "output", "joined")
        with pytest.raises(InputError, match="recorded already"):
            writer.file("probe-event", "output")
    recording = Recording(tmp_path / "whole")
    assert not inner.exists() and all(row["valid"] for row in recording.verdicts())
    assert [line for _, line in recording.input()] == LINES
    assert list(recording.lines("fault-window")) == [b'{"x":1}\n', b'{"x":2}\n'] and recording.kinds("truth") == ["fault-window"]
    assert list(recording.lines("joined")) == [LINES[4]]


def test_moments_at_second_hand_are_records(tmp_path: Path) -> None:
    """A recorded stream that is recorded again has moments of two collectors: lines that came, and those of this one's own clock."""
    inner, outer = b'{"stream_unix_nano":%d}' % (T0 + 1), T0 + 5 * S
    with RecordingWriter(tmp_path / "r") as writer:
        recorder = Recorder(writer)
        recorder.records(decode_lines([LINES[1].rstrip(b"\n"), inner, inner], CONSUMES), T0 + 3 * S)
        recorder.time(outer)
        recorder.records(decode_lines([inner], CONSUMES), T0 + 6 * S)
    recording = Recording(tmp_path / "r")
    again = [(at, line.rstrip(b"\n")) for at, line in recording.input()]
    own = (outer, b'{"stream_unix_nano":%d}' % outer)
    assert again == [(T0 + 3 * S, LINES[1].rstrip(b"\n")), *[(T0 + 3 * S, inner)] * 2, own, (T0 + 6 * S, inner)]


def test_a_full_disk_is_a_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason and the path, and no manifest."""
    with pytest.raises(CannotError, match="no space left") as caught, RecordingWriter(tmp_path / "r") as writer:
        file = writer.file("probe-event", "input")

        def full(_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(file._packed, "write", full)
        file.write(LINES[1], 1)
    assert caught.value.source == str(tmp_path / "r" / "probe-event.jsonl.gz") and not (tmp_path / "r" / "manifest.json").exists()


def test_names_of_kinds() -> None:
    """Spans are called spans; what has no contract is other."""
    assert (kind_of("otlp-spans"), kind_of(""), kind_of("slo-event")) == ("spans", "other", "slo-event")
