"""faultreplay: the recorded stream again, byte for byte, at its pace or at once; samples with labels; damage is refused."""

from __future__ import annotations

import gzip
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
import requests
from builders import MS, T0, S, agent_report, lines, objects, probe, raw_span, run_tool, span_id, span_request, tool_command, trace_id
from runs import joined, synthetic

from libslo.contracts import contract
from libslo.recordings import Recording, RecordingWriter


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A recording of the mixed scenario made by the collector, and what the collector said meanwhile."""
    directory = tmp_path_factory.mktemp("recorded") / "mixed"
    done = run_tool("collector", "--record", str(directory), data=lines(synthetic("mixed", 42)))
    assert done.returncode == 0, done.stderr
    return directory, done.stdout


def attributed(data: bytes, tmp_path: Path) -> tuple[bytes, bytes]:
    """(incidents, episodes) of what a collector said."""
    done = run_tool("attributor", "--episodes-out", str(tmp_path / "e.jsonl"), data=data)
    assert done.returncode == 0, done.stderr
    return done.stdout, (tmp_path / "e.jsonl").read_bytes()


def replayed(directory: Path, *arguments: str) -> bytes:
    done = run_tool("faultreplay", str(directory), *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_recording_changes_nothing(recorded: tuple[Path, bytes]) -> None:
    """What the collector says is the same with and without --record."""
    assert recorded[1] == joined("mixed", 42) == run_tool("collector", data=lines(synthetic("mixed", 42))).stdout


def test_a_replay_is_the_run_again_to_the_byte(recorded: tuple[Path, bytes], tmp_path: Path) -> None:
    """Replayed twice through collector and attributor: the original's lines, incidents and episodes."""
    directory, said = recorded
    assert replayed(directory) == lines(synthetic("mixed", 42))
    original = attributed(said, tmp_path)
    assert len(objects(original[0])) == 5 and len(objects(original[1])) == 10
    for _ in range(2):
        again = run_tool("collector", data=replayed(directory)).stdout
        assert again == said and attributed(again, tmp_path) == original


@pytest.mark.parametrize("arguments", [(), ("--verify",), ("--samples",)])
def test_what_is_read_is_not_written_to(recorded: tuple[Path, bytes], arguments: tuple[str, ...]) -> None:
    """A file of the recording as --out is refused, and is whole afterwards."""
    directory, _ = recorded
    done = run_tool("faultreplay", str(directory), *arguments, "--out", str(directory / "probe-event.jsonl.gz"))
    assert done.returncode == 2 and (b"output and input are the same file" in done.stderr or arguments == ("--samples",)), done.stderr
    assert run_tool("faultreplay", str(directory), "--verify").returncode == 0


def test_kinds(recorded: tuple[Path, bytes]) -> None:
    """--kinds leaves the others out and keeps the order."""
    out = objects(replayed(recorded[0], "--kinds", "raw-sample"))
    assert out == [each for each in synthetic("mixed", 42) if "ttft_ms" in each]
    done = run_tool("faultreplay", str(recorded[0]), "--kinds", "spans")
    assert done.returncode == 2 and b"no spans in the recorded input" in done.stderr and b"raw-sample" in done.stderr


# --- live


def free_port() -> int:
    import socket

    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        return int(probe_socket.getsockname()[1])


def live_run(directory: Path) -> bytes:
    """A live collector with signals on stdin and spans by HTTP, some of them late; what it said. Records itself."""
    port = free_port()
    process = subprocess.Popen(
        [*tool_command("collector"), "--otlp-listen", f"127.0.0.1:{port}", "--record", str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin and process.stderr
    try:
        process.stderr.readline()
        process.stdin.write(lines([agent_report(ts_unix_nano=time.time_ns())]))
        for i in range(12):
            now = time.time_ns()
            process.stdin.write(lines(probe(now, tid=i, pid=i + 1, value=20.0 + k) for k in range(3)))
            process.stdin.flush()
            resource = {
                "service.name": "rag",
                "k8s.namespace.name": "llm",
                "k8s.pod.name": "rag-0",
                "host.name": "node-a",
                "process.pid": i + 1,
            }
            late_ns = (0, 300, 1500)[i % 3] * MS
            span = raw_span(now - 200 * MS - late_ns, now - late_ns, trace=trace_id(i + 1), span=span_id(i + 1))
            body = orjson.dumps(span_request(span, resource=resource))
            answer = requests.post(
                f"http://127.0.0.1:{port}/v1/traces", data=body, headers={"Content-Type": "application/json"}, timeout=10
            )
            assert answer.status_code == 200
            time.sleep((0.02, 0.15, 0.4)[i % 3])
        time.sleep(1.3)
        process.stdin.write(lines([probe(time.time_ns(), tid=99)]))
        process.stdin.close()
        process.stdin = None
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        return out
    finally:
        process.kill()
        process.wait()


def test_a_live_run_is_repeated_to_the_byte(tmp_path: Path) -> None:
    """What a live collector said depended on its clock; the moments are recorded, so a replay says the same in the same order."""
    said = live_run(tmp_path / "live")
    kinds = {next(key for key in ("sli_name", "signal", "resourceSpans", "agent_version") if key in each) for each in objects(said)}
    assert kinds == {"sli_name", "signal", "resourceSpans", "agent_version"}
    assert sum("span_id" in each for each in objects(said) if "signal" in each) > 0
    stream = replayed(tmp_path / "live")
    assert sum("stream_unix_nano" in each for each in objects(stream)) > 5
    for _ in range(2):
        assert run_tool("collector", data=stream).stdout == said
    chopped = subprocess.run(
        ["bash", "-c", 'dd bs=97 status=none | "$@"', "bash", *tool_command("collector")], input=stream, capture_output=True, check=True
    )
    assert chopped.stdout == said
    without = run_tool("collector", data=replayed(tmp_path / "live", "--kinds", "probe-event,spans,agent-report")).stdout
    assert sorted(objects(without), key=str) != [] and without != said  # without the moments the order is another one


def paced(directory: Path, seconds: float, count: int = 6) -> Path:
    """A recording whose lines came evenly over that time."""
    from libslo.jsonl import decode_lines
    from libslo.recordings import Recorder

    with RecordingWriter(directory) as writer:
        recorder = Recorder(writer)
        for i in range(count):
            line = lines([probe(T0 + i * S)]).rstrip()
            recorder.records(decode_lines([line], ("probe-event",)), T0 + int(i * seconds / (count - 1) * S))
    return directory


@pytest.mark.parametrize(("pace", "least", "most"), [("1", 1.0, 6.0), ("10", 0.1, 3.0), (None, 0.0, 3.0)])
def test_pace(tmp_path: Path, pace: str | None, least: float, most: float) -> None:
    """A second of recording takes a second at --pace 1, a tenth at 10, and no time without; the lines are the same."""
    directory = paced(tmp_path / "r", 1.0)
    process = subprocess.Popen(
        [*tool_command("faultreplay"), str(directory), *(["--pace", pace] if pace else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout
    first = process.stdout.readline()
    began = time.monotonic()
    rest = process.stdout.read()
    took = time.monotonic() - began
    assert process.wait() == 0 and len(objects(first + rest)) == 6
    assert least - 0.1 <= took <= most
    assert first + rest == replayed(directory)


def test_ctrl_c_in_a_pause_is_130(tmp_path: Path) -> None:
    """A replay that waits for its next line ends at once."""
    process = subprocess.Popen(
        [*tool_command("faultreplay"), str(paced(tmp_path / "r", 60)), "--pace", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130 and err == b"faultreplay: interrupted\n"


@pytest.mark.parametrize("arguments", [[], ["--pace", "1"]])
def test_a_closed_pipe_is_quiet_also_in_a_pause(tmp_path: Path, arguments: list[str]) -> None:
    """Who reads one line and goes ends the replay, without waiting for the next line's time."""
    directory = paced(tmp_path / "r", 300, count=2 if arguments else 20_000)
    process = subprocess.Popen([*tool_command("faultreplay"), str(directory), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr and process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=20) == 0 and process.stderr.read() == b""
    process.stderr.close()


# --- what is wrong


def refused(*arguments: str) -> str:
    done = run_tool("faultreplay", *arguments)
    fact, cure = done.stderr.decode().splitlines()[-2:]
    assert done.returncode == 2 and cure.startswith("  try: "), done.stderr
    return fact


def test_damage_is_refused_with_its_place(tmp_path: Path) -> None:
    """A truncated file, a missing one, a newer format, an unfinished recording, one without lines, one without arrivals."""
    directory = paced(tmp_path / "r", 1)
    packed = directory / "probe-event.jsonl.gz"
    whole, manifest = packed.read_bytes(), (directory / "manifest.json").read_bytes()
    packed.write_bytes(whole[:-8])
    assert (
        refused(str(directory))
        == f"faultreplay: {packed}: cannot unpack: compressed file ended before the end-of-stream marker was reached"
    )
    packed.unlink()
    assert refused(str(directory)) == f"faultreplay: {packed}: no such file or directory"
    packed.write_bytes(whole)
    (directory / "manifest.json").write_bytes(manifest.replace(b'"recording_format": 1', b'"recording_format": 9'))
    assert "a recording of format 9, and this toolkit reads up to 1" in refused(str(directory))
    (directory / "manifest.json").unlink()
    assert refused(str(directory)) == f"faultreplay: {directory}: an unfinished recording: it has no manifest.json"
    assert "no such file" in refused(str(tmp_path / "none"))
    with RecordingWriter(tmp_path / "bare"):
        pass
    assert "nothing to replay" in refused(str(tmp_path / "bare"))
    assert run_tool("collector", "--record", str(tmp_path / "empty")).returncode == 0
    assert "nothing was recorded" in refused(str(tmp_path / "empty"))


def test_verify(tmp_path: Path) -> None:
    """One verdict a file; exit 1 when one is not what was recorded, whatever is wrong with it."""
    directory = paced(tmp_path / "r", 1)
    done = run_tool("faultreplay", str(directory), "--verify")
    assert done.returncode == 0 and [each["valid"] for each in objects(done.stdout)] == [True, True]
    packed = directory / "probe-event.jsonl.gz"
    packed.write_bytes(gzip.compress(gzip.decompress(packed.read_bytes()).replace(b"node-a", b"node-b"), mtime=0))
    done = run_tool("faultreplay", str(directory), "--verify")
    assert done.returncode == 1 and b"1 not as recorded" in done.stderr
    (bad,) = [each for each in objects(done.stdout) if not each["valid"]]
    assert bad["file"] == str(packed) and "sha256" in bad["reason"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["x", "--scenario", "mixed"],
        ["--scenario", "mixed", "--pace", "1"],
        ["--scenario", "mixed", "--verify"],
        ["x", "--verify", "--samples"],
        ["x", "--samples", "--pace", "2"],
        ["x", "--pace", "0"],
        ["x", "--pace", "nan"],
        ["x", "--count", "5"],
        ["x", "--seed", "5"],
        ["x", "--window-s", "5"],
    ],
)
def test_options_that_do_not_go_together(arguments: list[str]) -> None:
    """Exit 2 before anything is looked at, and nothing on stdout."""
    done = run_tool("faultreplay", *arguments)
    assert done.returncode == 2 and done.stdout == b"" and b"x: " not in done.stderr


def test_a_killed_collector_leaves_an_unfinished_recording(tmp_path: Path) -> None:
    """kill -9 in the middle: recognised, and a new run needs another directory."""
    process = subprocess.Popen([*tool_command("collector"), "--record", str(tmp_path / "r")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    process.stdin.write(lines([{"hello": 1}, *synthetic("mixed", 42)[:50]]))
    process.stdin.flush()
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert "unfinished" in refused(str(tmp_path / "r"))
    again = run_tool("collector", "--record", str(tmp_path / "r"))
    assert again.returncode == 2 and b"name a new directory" in again.stderr


def test_a_run_that_fails_leaves_no_manifest(tmp_path: Path) -> None:
    """A bad line ends the run with 2: what was recorded until then is not passed off as a run."""
    done = run_tool("collector", "--record", str(tmp_path / "r"), data=lines([probe(T0)]) + b"{\n")
    assert done.returncode == 2 and "unfinished" in refused(str(tmp_path / "r"))
    skipped = run_tool(
        "collector", "--record", str(tmp_path / "s"), "--on-bad", "skip", data=lines([probe(T0)]) + b"{\n" + lines([probe(T0)])
    )
    assert skipped.returncode == 0 and replayed(tmp_path / "s") == lines([probe(T0)] * 2)


# --- samples


def test_samples_of_a_scenario() -> None:
    """Valid, seeded, labelled with what was on in the whole window; windows across an edge are counted, not written."""
    arguments = ("--scenario", "mixed", "--count", "1000", "--window-s", "2")
    done = run_tool("faultreplay", *arguments)
    samples = objects(done.stdout)
    assert all(contract("fault-sample").is_valid(each) for each in samples)
    labels = {each["fault_label"]: each["expected_domains"] for each in samples}
    assert labels["dns_latency"] == ["network_dns"] and labels["baseline"] == [] and len(labels) == 6
    assert b"windows across the edge of a fault left out" in done.stderr and all(each["synthetic"] for each in samples)
    assert run_tool("faultreplay", *arguments).stdout == done.stdout
    assert run_tool("faultreplay", *arguments, "--seed", "7").stdout != done.stdout
    slow = [each for each in samples if each["fault_label"] == "dns_latency"]
    dns = {row["signal"]: row["value"] for row in slow[0]["signals"]}["dns_latency_ms"]
    assert dns > 200 and {row["sli"]: row for row in slow[0]["slis"]}["ttft_ms"]["bad"] > 0


def with_truth(directory: Path, tmp_path: Path, change: Any = lambda window: window, **about: Any) -> Path:
    """The recording with fault-windows beside it."""
    from libslo.scenarios import load_scenario
    from libslo.synthetic import SyntheticSettings, fault_windows

    path = tmp_path / "truth.jsonl"
    path.write_bytes(lines(change(window) for window in fault_windows(SyntheticSettings(load_scenario("mixed"), 1000))))
    with RecordingWriter(tmp_path / "labelled", about) as writer:
        writer.adopt(directory)
        writer.add(path, "fault-window", "truth")
    return tmp_path / "labelled"


@pytest.fixture
def long_one(tmp_path: Path) -> Path:
    """A recording of a thousand requests of the mixed scenario."""
    assert run_tool("collector", "--record", str(tmp_path / "long"), data=lines(synthetic("mixed", 42, 1000))).returncode == 0
    return tmp_path / "long"


def test_samples_of_a_recording_are_those_of_its_scenario(long_one: Path, tmp_path: Path) -> None:
    """The same records by way of a recording give the same samples."""
    labelled = with_truth(long_one, tmp_path, scenario="mixed")
    assert (
        replayed(labelled, "--samples", "--window-s", "2")
        == run_tool("faultreplay", "--scenario", "mixed", "--count", "1000", "--window-s", "2").stdout
    )


def test_labels_are_for_evaluation_only(long_one: Path, tmp_path: Path) -> None:
    """Windows with other faults and domains, and requests with other labels: what was measured is the same, only the labels differ."""
    expected = objects(run_tool("faultreplay", "--scenario", "mixed", "--count", "1000", "--window-s", "2").stdout)
    labelled = with_truth(
        long_one, tmp_path, lambda w: {**w, "fault": "memory_pressure", "expected_domains": ["unknown"]}, scenario="mixed"
    )
    changed = objects(replayed(labelled, "--samples", "--window-s", "2"))
    blind = ("timestamp", "window_ms", "service", "slis", "signals", "synthetic", "scenario")
    assert [{key: each[key] for key in blind} for each in changed] == [{key: each[key] for key in blind} for each in expected]
    assert {each["fault_label"] for each in changed} == {"baseline", "memory_pressure"}


def test_a_recording_without_truth_gives_no_samples(recorded: tuple[Path, bytes], tmp_path: Path) -> None:
    """Unlabelled windows are refused, unless the run is said to be a baseline."""
    assert "no fault-window in it" in refused(str(recorded[0]), "--samples")
    data = lines(synthetic("baseline", 1))
    assert run_tool("collector", "--record", str(tmp_path / "quiet"), data=data).returncode == 0
    with RecordingWriter(tmp_path / "named", {"scenario": "baseline"}) as writer:
        writer.adopt(tmp_path / "quiet")
    assert {each["fault_label"] for each in objects(replayed(tmp_path / "named", "--samples"))} == {"baseline"}
    assert Recording(tmp_path / "named").manifest["scenario"] == "baseline"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_live_collector_that_is_told_to_end_finishes_its_recording(tmp_path: Path, number: int) -> None:
    """On a signal what came until then is flushed, and the manifest written; files beside it are left alone."""
    (tmp_path / "collector.log").write_text("x")
    process = subprocess.Popen(
        [*tool_command("collector"), "--otlp-listen", "127.0.0.1:0", "--no-input", "--record", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr
    port = int(process.stderr.readline().split()[-1])
    body = orjson.dumps(span_request(raw_span(kind=2)))
    assert requests.post(f"http://127.0.0.1:{port}/v1/traces", data=body, headers={"Content-Type": "application/json"}, timeout=10).ok
    process.send_signal(number)
    said, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert run_tool("collector", data=replayed(tmp_path)).stdout == said != b""
    assert Recording(tmp_path).kinds("input") == ["spans"] and (tmp_path / "collector.log").exists()
