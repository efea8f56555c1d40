"""Many runs: which are planned, which are known already, and the table of them."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from libslo.errors import CannotError, InputError
from libslo.lab.chaos import _is_there, _lock, _plans, main
from libslo.lab.chaos_table import markdown, summary_line
from libslo.lab.pipeline import Pipeline, last_line
from libslo.lab.run import _alone, plan_identity
from libslo.lab.topology import lab_environment
from libslo.lab.verdict import _achieved
from libslo.recordings import RecordingWriter

_S = 1_000_000_000
VERDICT: dict[str, Any] = {
    "scenario": "dns_latency",
    "severity": "medium",
    "stretches": [
        {"phase": "baseline", "step": -1, "scenarios": [], "begin_unix_ns": 0, "end_unix_ns": 10 * _S,
         "figures": {"ttft_p95_ms": 300.0, "ttft_p95_error_ms": 9.0, "tokens_per_s_p50": 100.0, "error_ratio": 0.0}},
        {"phase": "fault", "step": 0, "scenarios": ["dns_latency"], "begin_unix_ns": 10 * _S, "end_unix_ns": 20 * _S,
         "figures": {"ttft_p95_ms": 900.0, "ttft_p95_error_ms": 110.0, "tokens_per_s_p50": 100.0, "error_ratio": 0.0}},
    ],
    "signals": [{"step": 0, "scenarios": ["dns_latency"], "moved": ["dns_latency_ms"], "missing": [], "unexpected": [], "moves": []}],
    "assertions": [{"metric": "ttft_p95_ratio", "operator": ">=", "value": 1.5, "phase": "fault", "step": 0, "found": 3.0, "kept": True}],
    "incidents": [{"domain": "network_dns", "confidence": 0.99, "timestamp": "", "arrival_unix_ns": 12 * _S}],
    "detection": {
        "injections": [{"label": "dns_latency", "begin_ns": 10 * _S, "end_ns": 20 * _S, "requests": 100, "bad_requests": 90,
                        "moved_sli": True,
                        "episodes": 1, "delay_event_s": 1.8, "delay_arrival_s": 2.0, "onset_error_s": 0.1, "named": True}],
        "false_alarms": [],
        "windows": [[10.0, 0]],
    },
    "missed_in_an_episode": 0,
    "load_achieved_ratio": 1.0,
    "account_closes": True,
    "overhead": {"agent": {"node_cpu_pct": 2.0, "node_cpu_pct_p95": 3.0, "rss_mb": 60.0}},
    "ok": True,
}  # fmt: skip


def test_plans_count_seeds_and_repetitions() -> None:
    """Every severity and repetition once, seeds counted on; a scenario without faults has one severity."""
    plans = list(_plans(("dns_latency", "baseline"), ("all",), 2, "smoke", 7, False))
    assert [(plan.scenario, plan.severity, plan.seed, number) for plan, number in plans] == [
        *(("dns_latency", severity, seed, seed - 6) for severity in ("low", "medium", "high") for seed in (7, 8)),
        ("baseline", "medium", 7, 1),
        ("baseline", "medium", 8, 2),
    ]
    assert all(plan.durations == {"baseline": 15, "fault": 12, "recovery": 8} for plan, _ in plans)


@pytest.mark.parametrize(("severities", "profile"), [(("huge",), None), ((), "weekly")])
def test_plans_that_cannot_be(severities: tuple[str, ...], profile: str | None) -> None:
    """An unknown severity or profile is a usage error."""
    with pytest.raises(click.UsageError, match="one of"):
        list(_plans(("baseline",), severities, 1, profile, 1, False))


def test_a_run_is_known_by_its_plan(tmp_path: Path) -> None:
    """Nothing is known of a directory without a whole run, and another seed is another run."""
    (one, _), (other, _) = _plans(("dns_latency",), (), 2, None, 1, False)
    assert plan_identity(one) != plan_identity(other) and len(plan_identity(one)["scenario_sha256"]) == 64
    assert not _is_there(tmp_path / "none", one)


def test_a_finished_run_of_another_plan_stays(tmp_path: Path) -> None:
    """It is not run over: whoever asks for another seed in its place is told so."""
    (one, _), (other, _) = _plans(("dns_latency",), (), 2, None, 1, False)
    with RecordingWriter(tmp_path / "run-1", {"plan": plan_identity(one)}):
        pass
    with pytest.raises(InputError, match="a run of another plan is there"):
        _is_there(tmp_path / "run-1", other)
    assert _is_there(tmp_path / "run-1", one)
    assert (tmp_path / "run-1" / "manifest.json").is_file()


def test_what_is_there_is_looked_at_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A matrix that meets a run of another plan in the end says so at once: nothing was run, and that run stays."""
    (_, _), (last, _) = _plans(("dns_latency",), (), 2, "brief", 7, False)
    there = tmp_path / "dns_latency" / "medium" / "run-2"
    with RecordingWriter(there, {"plan": plan_identity(last)}):
        pass
    begun: list[object] = []
    monkeypatch.setattr("libslo.lab.run.run_plan", lambda *arguments: begun.append(arguments))
    with pytest.raises(SystemExit) as ended:
        main(["--scenario", "dns_latency", "--runs", "2", "--seed", "7", "--profile", "ci", "--artifacts", str(tmp_path)])
    assert ended.value.code == 2 and begun == [] and (there / "manifest.json").is_file()
    fact, cure = capsys.readouterr().err.splitlines()
    assert fact.startswith(f"chaos: {there}: a run of another plan is there") and "--artifacts" in cure


def test_the_lab_takes_no_settings_of_the_user_s_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configured webhook is not paged by an experiment; where records are kept stays, and what is not ours too."""
    for name in ("SLO_CONFIG", "SLO_WEBHOOK_URL", "SLO_BURN_POLICY", "SLO_STATE_DIR", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "x")
    names = lab_environment().keys()
    assert not {"SLO_CONFIG", "SLO_WEBHOOK_URL", "SLO_BURN_POLICY"} & names
    assert {"SLO_STATE_DIR", "HTTPS_PROXY", "PATH", "PYTHONPATH"} <= names


def test_another_lab_beside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that sees the whole machine would take its events for this one's; one that sees its lab only does not mind."""
    (plan, _), *_ = _plans(("dns_latency",), (), 1, None, 1, False)
    (scoped, _), *_ = _plans(("dns_latency",), (), 1, None, 1, True)
    monkeypatch.setattr("libslo.lab.run.running_labs", lambda: ["one"])
    _alone(plan)
    monkeypatch.setattr("libslo.lab.run.running_labs", lambda: ["one", "other"])
    _alone(scoped)
    with pytest.raises(CannotError, match="another lab is running"):
        _alone(plan)


def test_a_load_that_fell_behind_shows() -> None:
    """The rate at which requests left over the rate asked for; those due outside the phases do not count, those never sent do."""
    due = [{"scheduled_unix_ns": second * _S} for second in range(120)]
    in_time = [{**row, "sent_unix_ns": row["scheduled_unix_ns"]} for row in due]
    late = [{**row, "sent_unix_ns": int(row["scheduled_unix_ns"] * 1.1)} for row in due]
    assert _achieved(in_time, 0, 100 * _S) == 1.0
    assert _achieved(late, 0, 100 * _S) == pytest.approx(1 / 1.1, abs=0.01)
    assert _achieved([*in_time[:90], *due[90:]], 0, 100 * _S) == pytest.approx(0.9)
    assert _achieved([*in_time[:100], *due[100:]], 0, 100 * _S) == 1.0
    assert _achieved([], 0, 100 * _S) is None


def test_what_a_tool_said_last(tmp_path: Path) -> None:
    """The fact, not what to try, and not what it had said before."""
    log = tmp_path / "agent.log"
    log.write_text("agent: listening\nagent: kernel: no BTF\n  try: another kernel\n\n")
    assert last_line(log) == "agent: kernel: no BTF"
    log.write_text("")
    assert last_line(log) == "it said nothing"


def test_a_load_that_ended_by_itself_ends_the_run(tmp_path: Path) -> None:
    """The pipeline looks at the load as at its tools; told to end, one that fails is no good load."""
    pipeline = Pipeline.__new__(Pipeline)
    pipeline._directory, pipeline.tools = tmp_path, {}

    def load(code: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        process.stdout.close()
        return process

    on_term = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit({})); print('up', flush=True); time.sleep(60)"
    for code, good in ((0, True), (1, True), (70, False)):
        pipeline.load = load(on_term.format(code))
        if good:
            pipeline.end_load()
        else:
            with pytest.raises(CannotError, match="the load ended with 70"):
                pipeline.end_load()
        assert pipeline.load is None
    pipeline.load = load("print('up', flush=True)")
    pipeline.load.wait()
    with pytest.raises(CannotError, match="the load ended too early, with 0"):
        pipeline.end_load()


def test_one_matrix_at_a_time_in_a_directory(tmp_path: Path) -> None:
    """A second one is told to wait; when the first has ended it may go on."""
    first = _lock(tmp_path / "runs")
    with pytest.raises(CannotError, match="another matrix works in it"):
        _lock(tmp_path / "runs")
    first.close()
    _lock(tmp_path / "runs").close()


def test_table() -> None:
    """Delay, naming, false alarms and reruns are counted from the verdicts; a spread over the target is said to be one."""
    late, blind = copy.deepcopy(VERDICT), copy.deepcopy(VERDICT)
    late["detection"]["injections"][0] |= {"delay_arrival_s": 4.0, "episodes": 2}
    late["detection"] |= {"false_alarms": ["inc-1"], "windows": [[10.0, 1]]}
    blind["detection"]["injections"][0] |= {"episodes": 0, "delay_arrival_s": None, "delay_event_s": None, "named": None}
    blind["stretches"][1]["figures"]["ttft_p95_ms"] = 1500.0
    blind["signals"][0] |= {"missing": ["dns_latency_ms"], "unexpected": ["disk_io_latency_ms"]}
    blind["assertions"][0]["kept"] = False
    blind["overhead"] = {"agent": {"node_cpu_pct": 2.0, "node_cpu_pct_p95": 4.5, "rss_mb": 60.0}}
    blind["missed_in_an_episode"] = 1
    blind["ok"] = False
    text = markdown([VERDICT, late, blind], "cmd")
    row = next(line for line in text.splitlines() if line.startswith("| dns_latency | medium | 3 | 300"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[3:] == [
        "300", "900", "0", "not dns_latency_ms (1)", "disk_io_latency_ms (1)", "3 of 3", "2 of 3", "3", "–", "2 of 3", "1", "1", "2 of 3",  # noqa: RUF001
    ]  # fmt: skip
    assert "Delay: median 3 s, n = 2; by the records' own times 1.8 s." in text
    assert "False alarms: 1 in 30 s without a fault\n(1 of 3 windows)." in text
    assert "2 of 3 (Wilson 95 %: 0.208 to 0.939) were detected, 2 named; 1 episodes too many." in text
    assert "| dns_latency | medium | 3 | 31.5% (over the target) | 0.0% | 0 in every run | 10.0% |" in text
    assert "Of the 1 that were not, 1 began while the episode of the fault before them was still open:" in text
    assert "all signals and no ceiling: agent 2.00 % (p95 of a run's seconds 3.50 %), 60 MB." in text


def test_one_line_says_what_is_wrong() -> None:
    """A run that is not ok says which assertion, signal or account it was."""
    assert summary_line(VERDICT) == "ok: network_dns 0.99"
    wrong = copy.deepcopy(VERDICT) | {"ok": False, "account_closes": False, "load_achieved_ratio": 0.95}
    wrong["assertions"][0] |= {"kept": False, "found": 1.2}
    wrong["signals"][0] |= {"missing": ["dns_latency_ms"]}
    assert summary_line(wrong) == (
        "NOT OK: network_dns 0.99; ttft_p95_ratio >= 1.5 in the fault: 1.2; dns_latency_ms did not move;"
        " of the load only 0.95 was achieved; an account does not close"
    )


def test_an_unknown_load_is_a_usage_error() -> None:
    """It is refused before anything is made, with the known ones."""
    from click.testing import CliRunner

    from libslo.lab.chaos import command

    done = CliRunner().invoke(command, ["--scenario", "baseline", "--load", "nope"])
    assert done.exit_code == 2 and "no load 'nope'; one of:" in done.output
