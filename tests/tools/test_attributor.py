"""attributor: incidents from joined records, with the cause, an account, and figures for labelled input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import MS, T0, agent_report, lines, objects, probe, run_tool, slo_event, tool_command
from runs import incidents, joined

from libslo.contracts import contract
from libslo.resources import data_path
from libslo.slo import format_timestamp

MIXED = ["network_dns", "cpu_throttle", "memory_pressure", "provider_throttle", "network_egress"]


def test_incidents_and_the_account() -> None:
    """One valid line an incident on stdout; on stderr each with its cause and signals, then the counts."""
    done = run_tool("attributor", data=joined("mixed", 42))
    found = objects(done.stdout)
    assert done.returncode == 0 and [o["predicted_fault_domain"] for o in found] == MIXED
    assert all(contract("incident-attribution").is_valid(o) for o in found)
    assert done.stdout == lines(each.value for each in incidents("mixed", 42))
    notes = done.stderr.decode().splitlines()
    assert (
        notes[0].startswith("attributor: 2026-01-01T00:00:")
        and "rag-service: network_dns (0.8" in notes[0]
        and "dns_latency_ms" in notes[0]
    )
    assert notes[5].endswith(" 0 bad, 0 not for us and left out; 5 incidents")


def test_the_rule_mode() -> None:
    """--attribution-mode rule answers by the short list."""
    done = run_tool("attributor", "--attribution-mode", "rule", data=joined("mixed", 42))
    assert [o["predicted_fault_domain"] for o in objects(done.stdout)] == [i.verdict.domain for i in incidents("mixed", 42, "rule")]


def test_one_line_at_a_time_is_the_same(tmp_path: Path) -> None:
    """From a file, from a packed file and from a pipe: the same bytes."""
    import gzip

    data = joined("dns_latency", 3)
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data))
    piped = run_tool("attributor", data=data).stdout
    assert piped and run_tool("attributor", "--input", str(tmp_path / "a.jsonl")).stdout == piped
    assert run_tool("attributor", "--input", str(tmp_path / "a.jsonl.gz")).stdout == piped


def test_the_agent_s_mode_is_another_option(tmp_path: Path) -> None:
    """One toolkit.yaml for all tools: signal_set.capability_mode is no attribution mode."""
    (tmp_path / "toolkit.yaml").write_text("signal_set: {capability_mode: core_full}\n")
    assert run_tool("attributor", "--config", str(tmp_path / "toolkit.yaml")).returncode == 0


def test_abstain_below() -> None:
    """Nobody is sure enough for 1.0."""
    done = run_tool("attributor", "--abstain-below", "1", data=joined("mixed", 42))
    assert "unknown" in {o["predicted_fault_domain"] for o in objects(done.stdout)}


def test_objectives_and_policy() -> None:
    """A wider objective raises nothing; the page policy wants hours."""
    for arguments in (["--slo", "ttft_ms=60000@0.5", "--slo", "error_rate=1@0.5"], ["--burn-policy", "page", "--slo", "ttft_ms=800@0.01"]):
        assert run_tool("attributor", *arguments, data=joined("dns_latency", 3)).stdout == b""


def test_summary_and_confusion(tmp_path: Path) -> None:
    """--summary-out and --confusion-out are written for labelled input, parents created."""
    summary, confusion = tmp_path / "x" / "s.json", tmp_path / "y" / "c.csv"
    done = run_tool("attributor", "--summary-out", str(summary), "--confusion-out", str(confusion), data=joined("mixed", 42))
    assert done.returncode == 0
    single = orjson.loads(summary.read_bytes())["accuracy"]
    assert (single["n"], single["right"]) == (5, 5) and single["wilson95"][0] == pytest.approx(0.5655, abs=1e-3)
    assert confusion.read_text().splitlines()[0] == "actual,predicted,count"


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--slo", "ttft_ms=800"], "not an objective"),
        (["--slo", "x=1@0.5"], "no SLI 'x'"),
        (["--burn-policy", "fast"], "--burn-policy"),
        (["--abstain-below", "2"], "--abstain-below"),
        (["--abstain-below", "nan"], "--abstain-below"),
        (["--baseline-s", "inf"], "--baseline-s"),
        (["--settle-ms", "nan"], "--settle-ms"),
        (["--model", "/nonexistent.json"], "/nonexistent.json: cannot read the model"),
        (["--attribution-mode", "guess"], "--attribution-mode"),
        (["--update-interval", "-1"], "--update-interval"),
        (["--update-interval", "nan"], "--update-interval"),
        (["--explain-out", "-"], "would mix"),
        (["--out", "x", "--explain-out", "-", "--episodes-out", "-"], "would mix"),
        (["--explain-out", "x", "--episodes-out", "x"], "would mix"),
        (["--summary-out", "-"], "--out, --episodes-out, --explain-out, --summary-out, --confusion-out would mix"),
        (["--summary-out", "x", "--confusion-out", "x"], "would mix"),
    ],
)
def test_bad_options_are_usage(arguments: list[str], fact: str) -> None:
    """Exit 2, the fact in the first line, nothing on stdout."""
    done = run_tool("attributor", *arguments)
    assert done.returncode == 2 and fact in done.stderr.decode().splitlines()[0] and done.stdout == b""


def test_a_model_file(tmp_path: Path) -> None:
    """A good model is used; one with a probability above 1 is refused by name and place."""
    value = orjson.loads(data_path("contracts/models/bayes.json").read_bytes())
    (tmp_path / "good.json").write_bytes(orjson.dumps(value))
    assert run_tool("attributor", "--model", str(tmp_path / "good.json"), data=joined("mixed", 42)).stdout.count(b"\n") == 5
    value["likelihood"]["dns_latency_ms"]["network_dns"] = [1.5, -0.25, -0.25]
    (tmp_path / "bad.json").write_bytes(orjson.dumps(value))
    done = run_tool("attributor", "--model", str(tmp_path / "bad.json"))
    assert done.returncode == 2 and f"{tmp_path / 'bad.json'}: likelihood.dns_latency_ms.network_dns" in done.stderr.decode()


@pytest.mark.parametrize("timestamp", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "2016-12-31T23:59:60Z", "9996-02-29T00:00:00Z"])
def test_odd_times_that_the_contract_allows(timestamp: str) -> None:
    """A valid time is never an error."""
    done = run_tool("attributor", data=lines([slo_event(), slo_event(timestamp=timestamp), slo_event()]))
    assert done.returncode == 0, done.stderr


def test_an_absurd_value_is_survived() -> None:
    """A value near the largest double raises nothing and breaks nothing."""
    assert run_tool("attributor", data=lines([slo_event(sli_value=1e305)] * 30)).returncode in (0,)


def test_episodes_beside_incidents(tmp_path: Path) -> None:
    """--episodes-out writes two records an episode under the ids of the incidents, which are what they are without it."""
    data = joined("mixed", 42)
    done = run_tool("attributor", "--episodes-out", str(tmp_path / "new" / "episodes.jsonl"), data=data)
    episodes = objects((tmp_path / "new" / "episodes.jsonl").read_bytes())
    assert done.returncode == 0 and done.stdout == run_tool("attributor", data=data).stdout
    assert all(contract("incident-episode").is_valid(episode) for episode in episodes)
    *states, last = [episode["state"] for episode in episodes]
    assert states == ["open", "closed"] * 4 + ["open"] and last in ("closed", "open_at_end")  # the input ends soon after the last fault
    assert [episode["incident_id"] for episode in episodes[::2]] == [incident["incident_id"] for incident in objects(done.stdout)]


def test_a_summary_to_stdout(tmp_path: Path) -> None:
    """- is stdout, for every output of the tool."""
    done = run_tool("attributor", "--summary-out", "-", "--out", str(tmp_path / "i.jsonl"), data=joined("dns_latency", 1))
    assert done.returncode == 0 and orjson.loads(done.stdout)["incidents"] == 1


def test_episodes_and_incidents_do_not_share_stdout(tmp_path: Path) -> None:
    """Two contracts on one pipe only when incidents go elsewhere."""
    done = run_tool("attributor", "--episodes-out", "-")
    assert done.returncode == 2 and "would mix" in done.stderr.decode() and done.stdout == b""
    done = run_tool("attributor", "--episodes-out", "-", "--out", str(tmp_path / "i.jsonl"), data=joined("dns_latency", 1))
    assert [episode["state"] for episode in objects(done.stdout)] == ["open", "closed"]
    assert len(objects((tmp_path / "i.jsonl").read_bytes())) == 1


def second_fault() -> bytes:
    """A service with slow name look-ups from 10 s, and segments lost too from 18 s, until 30 s."""
    rows: list[tuple[int, dict[str, Any]]] = []
    for i in range(400):
        ts = T0 + i * 100 * MS
        slow, losing = 10 <= i / 10 < 30, 18 <= i / 10 < 30
        rows.append((ts, slo_event(timestamp=format_timestamp(ts), sli_value=1500 if slow else 300, request_id=f"r{i}")))
        rows.append((ts, probe(ts, value=400 if slow else 2, service="rag")))
        rows += [(ts, probe(ts, "tcp_retransmits_total", 3, unit="count", service="rag"))] * losing
    return lines(value for _, value in rows)


def test_updates() -> None:
    """--updates says an incident again under its id when a second fault shows; without it the first is all, as it always was."""
    data = second_fault()
    arguments = ("--attribution-mode", "rule")
    once = run_tool("attributor", *arguments, "--update-interval", "1", data=data)
    done = run_tool("attributor", *arguments, "--updates", "--update-interval", "1", data=data)
    assert done.returncode == 0 and done.stdout.startswith(once.stdout) and len(objects(once.stdout)) == 1
    first, *updates = objects(done.stdout)
    assert updates and {each["incident_id"] for each in updates} == {first["incident_id"]}
    times = [each["timestamp"] for each in (first, *updates)]
    assert times == sorted(set(times)) and all(contract("incident-attribution").is_valid(each) for each in updates)
    assert {row["domain"] for row in first["fault_hypotheses"]} == {"network_dns"}
    assert {row["domain"] for row in updates[-1]["fault_hypotheses"]} == {"network_dns", "network_egress"}
    notes = done.stderr.decode().splitlines()
    assert f"[update of {first['incident_id']}: " in notes[1] and notes[-1].endswith(f"1 incidents, {len(updates)} updates")
    assert run_tool("attributor", *arguments, "--updates", "--update-interval", "1", data=data).stdout == done.stdout


def test_figures_are_of_the_last_answer(tmp_path: Path) -> None:
    """With --updates an incident counts once in --summary-out, as it was said last."""
    data = lines({**each, **({"labels": {"fault_label": "dns_latency"}} if "sli_name" in each else {})} for each in objects(second_fault()))
    summary = tmp_path / "s.json"
    arguments = ("--attribution-mode", "rule", "--summary-out", str(summary))
    n = []
    for more in ((), ("--updates", "--update-interval", "1")):
        assert run_tool("attributor", *arguments, *more, data=data).returncode == 0
        n.append(orjson.loads(summary.read_bytes())["incidents"])
    assert n == [1, 1]


def test_explanations(tmp_path: Path) -> None:
    """--explain on stderr in place of the line, --explain-out into a file beside it; the incidents are what they were, -q is quiet."""
    data = joined("dns_latency", 3)
    plain = run_tool("attributor", data=data)
    shown = run_tool("attributor", "--explain", data=data)
    kept = run_tool("attributor", "--explain-out", str(tmp_path / "new" / "e.txt"), data=data)
    assert shown.stdout == kept.stdout == plain.stdout and kept.stderr == plain.stderr
    said = (tmp_path / "new" / "e.txt").read_text()
    assert said.startswith("rag-service: network_dns (") and "look first: the name server" in said and said.endswith("\n\n")
    assert shown.stderr.decode().startswith(f"attributor: {said.rstrip()}\n") and b"\x1b" not in shown.stderr
    assert run_tool("attributor", "--explain", "-q", data=data).stderr == b""
    both = run_tool("attributor", "--explain-out", "-", "--out", str(tmp_path / "i.jsonl"), data=data)
    assert both.stdout.decode() == said and (tmp_path / "i.jsonl").read_bytes() == plain.stdout


def test_an_explanation_names_what_the_agent_did_not_measure() -> None:
    """What an agent report calls not attached stands in the explanation with its reason."""
    report = agent_report(attached=False, ts_unix_nano=T0)
    for row in report["signals"]:
        row["reason"] = "no BTF"
    done = run_tool("attributor", "--explain", data=lines([report]) + second_fault())
    said = " ".join(done.stderr.decode().split())
    assert "not measured: connect_latency_ms, connect_errors_total (no BTF)" in said


def test_explanations_on_a_terminal() -> None:
    """With a terminal as stderr rich shows them there: bold title, table, no line that the plain form does not have."""
    import os
    import pty
    import subprocess

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*tool_command("attributor"), "--explain"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "160"},
    )  # fmt: skip
    os.close(theirs)
    assert process.stdin
    process.stdin.write(joined("dns_latency", 3))
    process.stdin.close()
    said = b""
    try:
        while piece := os.read(ours, 4096):
            said += piece
    except OSError:
        pass  # Linux says EIO when the other end of a terminal is closed
    os.close(ours)
    assert process.wait(timeout=30) == 0
    assert b"\x1b[1mrag-service: network_dns (" in said and b"dns_latency_ms" in said


def test_episodes_are_written_while_they_are_open(tmp_path: Path) -> None:
    """A reader sees that an episode is open before its end, and the last words when the input breaks off."""
    done = run_tool("attributor", "--episodes-out", str(tmp_path / "e.jsonl"), data=joined("dns_latency", 1)[:-20])
    assert done.returncode == 2
    assert next(episode["state"] for episode in objects((tmp_path / "e.jsonl").read_bytes())) == "open"


@pytest.mark.parametrize("on_bad", ["fail", "skip"])
def test_more_bad_requests_than_requests_is_bad_input(on_bad: str) -> None:
    """A fault-sample that no schema refuses: named by its line, or left out."""
    good = objects(run_tool("faultreplay", "--scenario", "dns_latency", "--count", "60").stdout)[0]
    bad = {**good, "slis": [{**good["slis"][0], "requests": 3, "bad": 4}]}
    done = run_tool("attributor", "--on-bad", on_bad, data=lines([good, bad]))
    assert done.returncode == (2 if on_bad == "fail" else 0)
    assert b"attributor: stdin:2: not a valid fault-sample: 4 of 3 requests are bad" in done.stderr
