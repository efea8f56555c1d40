"""One cgroup that floods cannot take another's events away: token buckets of each cgroup, and each one's share of the DNS table."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from kernel_harness import Namespace, Recording, eventually, finish, first_line, refusal, server, start_inline

QUIET = 200  # events of the other cgroup
CONNECT = """
import json, socket, sys, time
print("ready", flush=True); sys.stdin.readline()
seconds, count, pause = float(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
end, done = time.monotonic() + seconds, 0
while done < count and time.monotonic() < end:
    with socket.socket() as sock:
        sock.connect_ex(("127.0.0.1", 9))
    done += 1
    time.sleep(pause)
print(done)
"""
ASK = """
import json, socket, sys, time
print("ready", flush=True); sys.stdin.readline()
seconds, count, pause, answers = float(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
name = b"\\2d0\\4test\\0" if answers else b"\\4drop\\4test\\0"
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); sock.settimeout(5)
sock.connect(("127.0.0.1", 53))
end, done = time.monotonic() + seconds, 0
while done < count and time.monotonic() < end:
    sock.send((done & 0xffff).to_bytes(2, "big") + b"\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0" + name + b"\\0\\1\\0\\1")
    if answers:
        sock.recv(512)
    done += 1
    time.sleep(pause)
print(done)
"""


@pytest.fixture
def cgroups(kernel: None) -> Iterator[tuple[Path, Path]]:
    """Two cgroup2 directories."""
    from libslo.host import cgroup2_mount

    root = cgroup2_mount()
    assert root is not None
    made = root / f"slo-flood-{os.getpid()}", root / f"slo-quiet-{os.getpid()}"
    for path in made:
        path.mkdir()
    yield made
    for path in made:
        eventually(lambda path=path: not (path / "cgroup.procs").read_text())  # type: ignore[misc]
        path.rmdir()


def inside(namespace: Namespace, cgroup: Path, script: str, *arguments: object) -> subprocess.Popen[str]:
    """A script that waits for its word, in a cgroup."""
    process = start_inline(namespace, script, *map(str, arguments))
    assert first_line(process) == "ready"
    (cgroup / "cgroup.procs").write_text(str(process.pid))
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.mark.parametrize(
    ("signal", "variant"),
    [
        ("connect_errors_total", "inet_sock_set_state"),
        pytest.param("connect_errors_total", "sock_ops", marks=pytest.mark.slow),
        ("dns_latency_ms", "cgroup_skb"),
        pytest.param("dns_latency_ms", "udp_send_skb", marks=pytest.mark.slow),
    ],
)
def test_a_flood_is_limited_and_nobody_else(namespace: Namespace, cgroups: tuple[Path, Path], signal: str, variant: str) -> None:
    """Beside a cgroup that makes events as fast as it can, all 200 of another one come through; each attempt is accounted for."""
    if variant == "udp_send_skb" and (found := refusal(signal, variant)):
        pytest.skip(found)
    script, more = (ASK, (1,)) if signal == "dns_latency_ms" else (CONNECT, ())
    flood = inside(namespace, cgroups[0], script, 5, 1 << 30, 0, *more)
    quiet = inside(namespace, cgroups[1], script, 60, QUIET, 0.02, *more)
    with ExitStack() as stack:
        if signal == "dns_latency_ms":
            stack.enter_context(server(namespace, "dns_server.py"))
        recording = stack.enter_context(
            Recording(signals=(signal,), variants={signal: variant}, cgroups=cgroups, rate_limit=60, burst_limit=60)
        )
        begun = time.monotonic()
        go(flood)
        assert finish(quiet, "go") == QUIET
        flooded = finish(flood)
        seconds = time.monotonic() - begun
    events = Counter(event["attributes"]["cgroup_id"] for event in recording.events)
    flood_id, quiet_id = (path.stat().st_ino for path in cgroups)
    account = recording.account(signal)
    print(f"{signal} {variant}: {flooded / 5:.0f} a second, {events[flood_id]} of {flooded} and {events[quiet_id]} of {QUIET} written")
    if flooded <= 600:
        pytest.skip(f"an emulated machine is too slow to flood: {flooded} events in 5 s, a real one makes thousands a second")
    assert events[quiet_id] == QUIET
    assert 60 <= events[flood_id] <= 60 + 60 * seconds + 1
    assert account["emitted"] == events[flood_id] + events[quiet_id]
    assert account["rate_limited"] == flooded - events[flood_id]
    assert account["attempts"] - account["filtered"] == flooded + QUIET
    assert account["dropped"] == 0


@pytest.mark.parametrize("variant", ["cgroup_skb", pytest.param("udp_send_skb", marks=pytest.mark.slow)])
def test_one_cgroup_cannot_fill_the_dns_table(namespace: Namespace, cgroups: tuple[Path, Path], variant: str) -> None:
    """Beside a cgroup whose name server answers nothing, 20,000 times, all 200 queries of another one are measured."""
    if variant == "udp_send_skb" and (found := refusal("dns_latency_ms", variant)):
        pytest.skip(found)
    lost = 20_000  # more than the table of all has room for
    flood = inside(namespace, cgroups[0], ASK, 60, lost, 0, 0)
    quiet = inside(namespace, cgroups[1], ASK, 60, QUIET, 0.005, 1)
    with (
        server(namespace, "dns_server.py"),
        Recording(
            signals=("dns_latency_ms",), variants={"dns_latency_ms": variant}, cgroups=cgroups, dns_timeout_ns=4 * 10**9
        ) as recording,
    ):
        begun = time.monotonic()
        assert finish(flood, "go") == lost
        times_full = 1 + (time.monotonic() - begun) // 4
        assert finish(quiet, "go") == QUIET
        time.sleep(5.5)
    flood_id, quiet_id = (path.stat().st_ino for path in cgroups)
    ended = Counter((event["attributes"]["cgroup_id"], event["attributes"]["dns.outcome"]) for event in recording.events)
    account = recording.account("dns_latency_ms")
    print(f"{variant}: {ended[flood_id, 'timeout']} of {lost} followed, {ended[quiet_id, 'answer']} of {QUIET} measured")
    assert ended == {(flood_id, "timeout"): ended[flood_id, "timeout"], (quiet_id, "answer"): QUIET}
    # The table's quarter, anew with each time-out; as much again can slip in while user space writes the true numbers.
    assert 4000 <= ended[flood_id, "timeout"] <= 8300 * times_full
    assert account["rate_limited"] == lost - ended[flood_id, "timeout"]
    assert account["emitted"] == len(recording.events)
    assert account["dropped"] == 0
