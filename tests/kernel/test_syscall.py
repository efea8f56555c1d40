"""syscall_latency_ms on the real kernel."""

from __future__ import annotations

import errno
import json
import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from kernel_harness import (
    AGENT,
    CLOCK_SLACK_MS,
    ControlGroup,
    Recording,
    attachable,
    eventually,
    first_line,
    io_group,
    prefer,
    script,
    tell,
)

SIGNAL = "syscall_latency_ms"
every = pytest.mark.parametrize("variant", ["tp_btf", "tp_btf_plain", "raw_tp", "fentry"])
ROUNDS = 23


@pytest.fixture(autouse=True)
def can_attach(kernel: None, request: pytest.FixtureRequest) -> None:
    """Skips a variant that this kernel does not let in."""
    if "variant" in request.fixturenames:
        attachable(SIGNAL, request.getfixturevalue("variant"))


def recorded(variant: str, **settings: Any) -> Recording:
    return Recording(signals=(SIGNAL,), variants={SIGNAL: variant}, **settings)


def agree(events: list[dict[str, Any]], done: list[tuple[int, int]]) -> None:
    """Each event lies within its call, give or take what lies between the clocks, and typically fills it."""
    lengths = [(ended_ns - begun_ns) / 1e6 for begun_ns, ended_ns in done]
    for event, (begun_ns, ended_ns), length_ms in zip(events, done, lengths, strict=True):
        assert begun_ns - CLOCK_SLACK_MS * 1e6 <= event["ts_unix_nano"] <= ended_ns + CLOCK_SLACK_MS * 1e6
        assert event["value"] <= length_ms
    typical_ms = statistics.median(lengths)
    assert statistics.median(event["value"] for event in events) == pytest.approx(typical_ms, abs=max(0.05 * typical_ms, CLOCK_SLACK_MS))


@every
@pytest.mark.parametrize(("what", "seconds"), [("pipe", 0.02), ("socket", 0.3)])
def test_a_wait_for_a_peer_is_timed_and_is_no_fault(variant: str, what: str, seconds: float) -> None:
    """23 reads that wait are 23 events of the thread that waited, in its cgroup; however long, their status is ok."""
    rounds = ROUNDS if what == "pipe" else 2
    with ControlGroup("memory") as group, script("syscall_user.py", what, rounds, seconds) as user:
        group.take(user.pid)
        prefer(user)
        with recorded(variant, pids=(user.pid,), min_latency_ms=5) as recording:
            tell(user)
            told = json.loads(first_line(user))
            time.sleep(0.1)  # its descriptors are looked at while it lives
        pid, identity = user.pid, group.id
    events = [event for event in recording.events if event["tid"] == told["tid"]]
    assert told["tid"] != pid
    assert len(events) == rounds
    agree(events, told["done"])
    for event in events:
        about = event["attributes"]
        assert (event["pid"], event["unit"], event["status"], about["cgroup_id"]) == (pid, "ms", "ok", identity)
        assert (about["syscall.name"], about["syscall.file"], about["syscall.waits_for"]) == ("read", what, "peer")
        assert ("syscall.fd" in about) == (variant != "fentry")
    recording.account(SIGNAL)


@pytest.fixture
def blocks(tmp_path: Path) -> tuple[Path, str]:
    """A file on a block device, written down, and the device's number."""
    path = tmp_path / "blocks"
    path.write_bytes(os.urandom(1 << 20))
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    if not Path(f"/sys/dev/block/{number}").exists():
        pytest.skip("the temporary directory is on no block device")
    return path, number


@every
@pytest.mark.parametrize(("what", "call", "limit"), [("disk", "read", "r"), ("sync", "fsync", "w")])
def test_a_slow_disk_is_a_fault(blocks: tuple[Path, str], variant: str, what: str, call: str, limit: str) -> None:
    """Reads and syncs that the limit of their cgroup holds back to ten a second are waits for storage, as long as their caller saw."""
    path, number = blocks
    with io_group() as slow, script("syscall_user.py", what, 15, path) as user:
        word = {"r": "read", "w": "write"}[limit]
        slow.set((f"blkio.throttle.{word}_iops_device", f"{number} 10"), ("io.max", f"{number} {limit}iops=10"))
        slow.take(user.pid)
        prefer(user)
        with recorded(variant, pids=(user.pid,), min_latency_ms=0.01) as recording:
            tell(user)
            told = json.loads(first_line(user))
            time.sleep(0.1)  # its descriptors are looked at while it lives
    events = [event for event in recording.events if event["attributes"]["syscall.name"] == call and event["tid"] == told["tid"]]
    events = [event for event in events if event["ts_unix_nano"] - event["value"] * 1e6 >= told["done"][0][0] - 1e6][: len(told["done"])]
    agree(events, told["done"])
    assert statistics.median(event["value"] for event in events) > 20
    for event in events:
        assert (event["attributes"]["syscall.file"], event["attributes"]["syscall.waits_for"]) == ("regular", "storage")
        assert event["status"] == ("error" if event["value"] >= 200 else "warning" if event["value"] >= 50 else "ok")
    recording.account(SIGNAL)


def test_files_are_told_from_peers_without_capabilities(kernel: None, tmp_path: Path) -> None:
    """An agent as it runs by default, without capabilities, knows what each write was to, though all was closed before it could look."""
    path = tmp_path / "written"
    path.touch()
    with script("syscall_user.py", "write", ROUNDS, path) as user:
        agent = subprocess.Popen([*AGENT, "--signals", SIGNAL, "--pid", str(user.pid), "--min-latency", "0"],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        try:
            report = json.loads(first_line(agent))
            status = Path(f"/proc/{agent.pid}/status").read_text()
            tell(user)
            regular, pipe, anonymous = json.loads(first_line(user))["descriptors"]
        finally:
            agent.terminate()
            output, said = agent.communicate(timeout=20)
    assert agent.returncode == 0, said
    assert report["signals"][0]["variant"] == "tp_btf"
    assert "CapEff:\t0000000000000000" in status
    events = [event for event in map(json.loads, output.splitlines()) if event.get("signal") == SIGNAL]
    writes = [event["attributes"] for event in events if event["attributes"]["syscall.name"] == "write"]
    for descriptor, what, peer in ((regular, "regular", "storage"), (pipe, "pipe", "peer"), (anonymous, "unknown", "peer")):
        mine = [(each["syscall.file"], each["syscall.waits_for"]) for each in writes if each["syscall.fd"] == descriptor]
        assert mine == [(what, peer)] * ROUNDS


@every
def test_a_failure_is_news_and_a_retry_is_none(variant: str, tmp_path: Path) -> None:
    """A call that fails is an event with its errno however fast it came; one that only found nothing yet is not."""
    with script("syscall_user.py", "fail", tmp_path) as user, recorded(variant, pids=(user.pid,), min_latency_ms=60_000) as recording:
        tell(user)
        first_line(user)
    assert [(event["errno"], event["status"]) for event in recording.events] == [(errno.EISDIR, "error")] * 7
    assert recording.account(SIGNAL)["filtered"] >= 7


@every
def test_filters_let_go_of_what_is_not_asked_for(variant: str) -> None:
    """Pid, command name and cgroup pass one process's calls, the threshold its long ones; each account closes."""
    with (
        ControlGroup("memory") as group,
        script("syscall_user.py", "pipe", 10, 0.01, "slo-wanted") as wanted,
        script("syscall_user.py", "pipe", 10, 0.01) as other,
    ):
        group.take(wanted.pid)
        with (
            recorded(variant, pids=(wanted.pid,), min_latency_ms=5) as by_pid,
            recorded(variant, comm="slo-wanted", min_latency_ms=5) as by_comm,
            recorded(variant, cgroups=(group.unified,), min_latency_ms=5) as by_cgroup,
            recorded(variant, pids=(wanted.pid,), min_latency_ms=5, rate_limit=4) as by_rate,
        ):
            for process in (wanted, other):
                tell(process)
            for process in (wanted, other):
                first_line(process)
        pid = wanted.pid
    assert len(by_pid.events) >= 10
    for recording in (by_pid, by_comm, by_cgroup):
        assert {event["pid"] for event in recording.events} == {pid}
        assert len(recording.events) == len(by_pid.events)
        assert recording.account(SIGNAL)["filtered"] > 10
    limited = by_rate.account(SIGNAL)
    assert limited["emitted"] + limited["rate_limited"] == len(by_pid.events)
    assert limited["rate_limited"] > 0


@every
def test_the_agents_own_calls_are_none(variant: str) -> None:
    """A recorder of all processes does not record itself, whose output would be its next input."""
    with script("syscall_user.py", "pipe", 3, 0.01) as user, recorded(variant) as recording:
        os.pread(os.open("/proc/self/stat", os.O_RDONLY), 1, 0)
        tell(user)
        first_line(user)
        eventually(lambda: bool(recording.of(SIGNAL, user.pid)))
    assert not recording.of(SIGNAL, os.getpid())


@every
def test_no_start_is_left(variant: str) -> None:
    """A thread that has ended leaves nothing behind, and neither does one that was killed inside a call."""
    from libslo.kernel.libbpf import map_lookup_batch
    from libslo.kernel.session import Session
    from libslo.kernel.settings import CaptureSettings

    with script("syscall_user.py", "pipe", 3, 0.01) as ended, script("syscall_user.py", "idle") as killed:
        settings = CaptureSettings(signals=(SIGNAL,), variants={SIGNAL: variant}, pids=(ended.pid, killed.pid))
        with Session(settings) as session:
            (state,) = session.states
            assert state.probe is not None
            fd = state.probe.object.map_fd("call_starts")
            tell(ended)
            first_line(ended)
            tell(killed)
            first_line(killed)  # and reads its stdin again, where it waits
            assert map_lookup_batch(fd, 4, 24, 32768)[2] >= 2
            for process in (ended, killed):
                process.kill()
                process.wait()
            eventually(lambda: map_lookup_batch(fd, 4, 24, 32768)[2] == 0)


@pytest.mark.parametrize("variant", ["tp_btf", "tp_btf_plain", "raw_tp"])
def test_a_32_bit_program_is_left_out(variant: str, tmp_path: Path) -> None:
    """getpid has the number of writev in a 32-bit program of x86: none of its calls is an attempt."""
    source, program = tmp_path / "small.S", tmp_path / "small"
    source.write_text(
        ".globl _start\n_start: mov $1000, %esi\n1: mov $20, %eax\n int $0x80\n dec %esi\n jnz 1b\n"
        "mov $1, %eax\n xor %ebx, %ebx\n int $0x80\n"
    )
    if os.uname().machine != "x86_64":
        pytest.skip("32-bit programs of x86 only")
    subprocess.run(["clang", "-m32", "-nostdlib", "-static", "-o", program, source], check=True)
    try:
        subprocess.run([program], check=True)
    except OSError as error:
        pytest.skip(f"this kernel runs no 32-bit programs: {error}")
    # Started stopped, so that nothing of the shell's own is counted.
    with ControlGroup("memory") as group:
        shell = subprocess.Popen(["sh", "-c", f"kill -STOP $$; exec {program}"])
        group.take(shell.pid)
        eventually(lambda: Path(f"/proc/{shell.pid}/stat").read_text().split()[2] == "T")
        with recorded(variant, pids=(shell.pid,)) as recording:
            shell.send_signal(18)
            assert shell.wait(10) == 0
    assert len(recording.events) < 20  # of the program's loading
