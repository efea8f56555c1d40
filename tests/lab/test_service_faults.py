"""Faults of a service: told through its control, kept on by a lease, ended by word or by silence."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from fault_runs import injector, injector_files
from lab_traces import Traces

from libslo.errors import CannotError, InputError
from libslo.lab.faults import service as module
from libslo.lab.faults.base import Target
from libslo.lab.faults.targets import find_target
from libslo.lab.injectors import make_injector
from libslo.lab.netns import call_in_netns, netns_of
from libslo.lab.topology import ADDRESSES, Topology

_SERVICE = str(Path(__file__).with_name("fault_service.py"))


def _service(*options: str) -> tuple[subprocess.Popen[bytes], str]:
    process = subprocess.Popen([sys.executable, _SERVICE, "127.0.0.1", "0", *options], stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, f"http://127.0.0.1:{int(process.stdout.readline())}"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


@pytest.fixture
def service(state: Path) -> Iterator[str]:
    """The URL of a service with a fault control on this machine's loopback."""
    process, url = _service()
    yield url
    _end(process)


def _get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 (our own service)
        said: dict[str, Any] = json.loads(answer.read())
    return said


def test_on_renewed_and_off(service: str, state: Path) -> None:
    """It is on as soon as apply() returns, still on after its first lease, counted by requests, and off after undo()."""
    fault = injector("retrieval_slowdown", f"url:{service}", delay_ms=300)
    fault.apply()
    try:
        assert fault.verify() == {"served": 0}
        (active,) = _get(f"{service}/-/faults")["active"]
        assert (active["fault"], active["parameters"]) == ("retrieval_slowdown", {"delay_ms": 300})
        time.sleep(3.5)
        assert _get(f"{service}/work") == {"active": ["retrieval_slowdown"]}
        assert fault.verify() == {"served": 1}
        assert len(injector_files(state)) == 1
    finally:
        fault.undo()
        fault.undo()
    assert _get(f"{service}/work") == {"active": []}
    assert injector_files(state) == []


def test_defaults_are_told_too(service: str) -> None:
    """The service is told every parameter, those of the vocabulary's defaults included."""
    fault = injector("provider_throttle", f"url:{service}", ratio=0.5)
    fault.apply()
    (active,) = _get(f"{service}/-/faults")["active"]
    fault.undo()
    assert active["parameters"] == {"ratio": 0.5, "retry_after_s": 1, "delay_ms": 0}


def test_two_faults_at_once(service: str) -> None:
    """Each is ended alone; the same twice is refused."""
    first, second = injector("provider_error", f"url:{service}", ratio=0.5), injector("app_stall", f"url:{service}", delay_ms=5)
    first.apply()
    second.apply()
    with pytest.raises(CannotError, match="app_stall is on already"):
        injector("app_stall", f"url:{service}", delay_ms=9).apply()
    first.undo()
    assert _get(f"{service}/work") == {"active": ["app_stall"]}
    second.undo()
    assert _get(f"{service}/work") == {"active": []}


def test_refused_by_the_service(service: str, state: Path) -> None:
    """What the service says is passed on, and nothing is left."""
    with pytest.raises(InputError, match="the service refuses the fault: unknown fault provider_slow"):
        injector("provider_slow", f"url:{service}").apply()
    assert injector_files(state) == []


def test_without_control(state: Path) -> None:
    """A service that was not started for it is told apart from one that is not there."""
    process, url = _service("--no-control")
    try:
        with pytest.raises(CannotError, match="the service has no fault control") as caught:
            injector("app_stall", f"url:{url}", delay_ms=5).apply()
        assert caught.value.hint == "start it with --allow-faults"
    finally:
        _end(process)
    with pytest.raises(CannotError, match="cannot reach the service"):
        injector("app_stall", f"url:{url}", delay_ms=5).apply()
    assert injector_files(state) == []


def test_service_that_was_restarted_meanwhile(state: Path) -> None:
    """A service that lost the fault is no ground truth; undoing after its end is no error."""
    process, url = _service()
    fault = injector("app_stall", f"url:{url}", delay_ms=5)
    fault.apply()
    _end(process)
    with pytest.raises(CannotError, match="cannot reach"):
        fault.verify()
    fault.undo()
    assert injector_files(state) == []


def test_ended_by_somebody_else_is_no_truth(service: str) -> None:
    """verify() asks the service."""
    fault = injector("app_stall", f"url:{service}", delay_ms=5)
    fault.apply()
    fault.stop_renewing()
    time.sleep(3.2)
    with pytest.raises(CannotError, match="does not list it as active"):
        fault.verify()
    fault.undo()


def test_a_lease_that_ran_out_before_it_was_renewed_is_no_truth(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service answers again, and lists the fault again: in between it was off."""
    monkeypatch.setattr(module, "LEASE_S", 0.5)
    monkeypatch.setattr(module, "_RENEW_S", 0.1)
    fault = injector("app_stall", f"url:{service}", delay_ms=5)
    fault.apply()
    fault.verify()
    plain = fault._renew  # type: ignore[attr-defined]
    late = threading.Event()

    def renew() -> None:
        if not late.is_set():
            time.sleep(1)
        plain()
        late.set()

    monkeypatch.setattr(fault, "_renew", renew)
    assert late.wait(5)
    time.sleep(0.2)
    try:
        with pytest.raises(CannotError, match="was off for a while: the service answered only after"):
            fault.verify()
    finally:
        fault.undo()


def test_in_the_lab_from_inside(traces: Traces) -> None:
    """The lab's service is told from inside its own namespace: it needs no way there, and its other faults do not matter."""
    with Topology() as lab:
        process = lab.spawn("app", [sys.executable, _SERVICE, ADDRESSES["app"], "8080"], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        cut = injector("packet_loss", ratio=0.9)
        fault = injector("app_stall", delay_ms=5)
        assert fault.target.url == f"http://{ADDRESSES['app']}:8080"
        cut.apply()
        fault.apply()
        try:
            assert fault.verify() == {"served": 0}
            said = call_in_netns(netns_of(lab.pids["app"]), lambda: _get(f"{fault.target.url}/work"))
            assert said == {"active": ["app_stall"]}
        finally:
            fault.undo()
            cut.undo()
        process.stdout.close()
        later = injector("app_stall", delay_ms=5)
        later.apply()
    later.undo()  # its namespace has gone, and the fault with it


def test_over_tls_by_address(state: Path, tmp_path: Path) -> None:
    """A service with a certificate for its name is told by its address; one of another authority is not trusted."""
    ours, other, certificate = trustme.CA(), trustme.CA(), tmp_path / "service.pem"
    ours.issue_cert("provider.lab").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    for authority in (ours, other):
        authority.cert_pem.write_to_path(str(tmp_path / f"{'ours' if authority is ours else 'other'}.pem"))
    process, url = _service("--certificate", str(certificate))
    url = url.replace("http:", "https:")
    try:
        faults = [
            make_injector("provider_error", {"ratio": 0.5}, Target(url, {}, url=url, ca=str(tmp_path / f"{name}.pem")))
            for name in ("ours", "other")
        ]
        faults[0].apply()
        assert faults[0].verify() == {"served": 0}
        faults[0].undo()
        with pytest.raises(CannotError, match=r"no answer from the service: .*CERTIFICATE_VERIFY_FAILED"):
            faults[1].apply()
    finally:
        _end(process)
    assert injector_files(state) == []


def test_roles_of_the_lab(traces: Traces) -> None:
    """Each service fault goes to the role that serves it, the provider over TLS with the lab's authority."""
    with Topology() as lab:
        provider = find_target("provider_error")
        assert (provider.url, provider.ca) == (f"https://{ADDRESSES['llm']}:8443", str(lab.files / "ca.pem"))
        assert find_target("retrieval_slowdown").url == f"http://{ADDRESSES['retrieval']}:8080"
        with pytest.raises(InputError, match="dns has no fault control"):
            find_target("app_stall", role="dns")


def test_url_needs_permission(service: str) -> None:
    """A service by URL is outside a lab."""
    with pytest.raises(InputError, match=r"app_stall would touch the service at http://127.0.0.1:.*, which is in no lab") as caught:
        find_target("app_stall", f"url:{service}")
    assert "--i-know" in str(caught.value.hint)
