"""kube_options: which server is asked and as whom, and what is refused before anything runs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_kube import CONTAINER, UID, FakeServer, pod, pod_list

from libslo.errors import CannotError, InputError
from libslo.kernel.identity import default_node
from libslo.kernel.kube_http import Place
from libslo.kernel.kube_options import KubeSettings, kube_place, open_resolver

AGENT = [sys.executable, "-c", "from slotools.agent import main; main()"]


@pytest.fixture
def account(tmp_path: Path) -> Path:
    for name in ("token", "ca.crt"):
        (tmp_path / name).write_text("x")
    return tmp_path


def test_a_pod_uses_its_own_account(account: Path) -> None:
    """In a cluster the address comes from the environment, token and authority from the mounted account."""
    for environ, url in (
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "https://10.0.0.1:443"),
        ({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}, "https://[fd00::1]:6443"),
        ({"KUBERNETES_SERVICE_HOST": "h", "KUBERNETES_SERVICE_PORT": "1", "KUBERNETES_SERVICE_PORT_HTTPS": "2"}, "https://h:2"),
    ):
        assert kube_place(KubeSettings(kube_api="in-cluster"), environ, account) == Place(url, account / "token", account / "ca.crt")
    with pytest.raises(CannotError, match="KUBERNETES_SERVICE_HOST"):
        kube_place(KubeSettings(kube_api="in-cluster"), {}, account)


def test_what_is_given_wins_over_the_account(account: Path, tmp_path: Path) -> None:
    """Options first, then the account if there is one; without verification no authority."""
    other = tmp_path / "other"
    given = KubeSettings(kubelet="https://n:10250/pods", kube_token=str(other), kube_ca="/c")
    assert kube_place(given, {}, account) == Place("https://n:10250", other, Path("/c"))
    assert kube_place(KubeSettings(kubelet="http://n:10255/"), {}, tmp_path / "none") == Place("http://n:10255")
    insecure = KubeSettings(kubelet="https://n:10250", kube_insecure=True)
    assert kube_place(insecure, {}, account) == Place("https://n:10250", account / "token", None, insecure=True)


@pytest.mark.parametrize(
    "url", ["n:10250", "ftp://n", "https://", "https://u:p@n", "https://n:x", "https://n/pods?a=b", "https://n#x", "in-cluster"]
)
def test_what_is_no_url_is_refused(url: str, account: Path) -> None:
    """A wrong URL is bad input, and names neither user nor password."""
    with pytest.raises(InputError) as caught:
        kube_place(KubeSettings(kubelet=url), {}, account)
    assert caught.value.source == "--kubelet" and "u:p" not in str(caught.value)


def test_the_node_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given, then SLO_NODE_NAME, then the host name."""
    for name in ("SLO_NODE_NAME", "SLO_NODE", "NODE_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert default_node() == socket.gethostname()
    monkeypatch.setenv("SLO_NODE_NAME", "from-env")
    assert default_node() == "from-env" and default_node("given") == "given"


def test_a_resolver_names_pods_and_leaves_no_thread() -> None:
    """With a source the resolver has names from the start; its thread ends with the block."""
    said: list[str] = []
    with FakeServer(lambda ask: ask.stream() if "watch" in ask.query else ask.send(pod_list(pod()))) as server:
        for settings in (KubeSettings(kubelet=server.url), KubeSettings(kube_api=server.url, node_name="node-b")):
            with open_resolver(settings, said.append) as resolver:
                assert resolver._pods and resolver._pods.lookup(UID, CONTAINER)
        assert {"fieldSelector": "spec.nodeName=node-b", "limit": "100"} in [query for _, query, _ in server.asked]
    with open_resolver(KubeSettings(), said.append) as resolver:
        assert resolver._pods is None
    assert said == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pods-")]


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ("--kubelet http://a --kube-api http://b", "one source of pod names is enough"),
        ("--kubelet https://a --kube-insecure --kube-ca x", "contradict"),
        ("--kube-token x", "go with --kubelet or --kube-api"),
        ("--kube-insecure", "go with --kubelet or --kube-api"),
        ("--kubelet nonsense --check", "not a URL"),
    ],
)
def test_combinations_that_make_no_sense_are_usage_errors(arguments: str, fact: str) -> None:
    """They are refused before anything is attached."""
    done = subprocess.run([*AGENT, *arguments.split()], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert fact in done.stderr


def test_the_configuration_fills_them(tmp_path: Path) -> None:
    """identity.* of toolkit.yaml stand for the options."""
    path = tmp_path / "toolkit.yaml"
    path.write_text("identity: {kubelet: 'https://127.0.0.1:1', kube_insecure: true, kube_ca: x}\n")
    done = subprocess.run([*AGENT, "--config", str(path)], capture_output=True, text=True, env={**os.environ}, timeout=60)
    assert done.returncode == 2 and "contradict" in done.stderr
