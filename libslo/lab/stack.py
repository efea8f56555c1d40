"""The running lab: its namespaces, name server, provider, retrieval backend and application, ready for load."""

from __future__ import annotations

import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from libslo.errors import CannotError
from libslo.lab.injectors import recover_stale
from libslo.lab.telemetry import resource_environment
from libslo.lab.topology import ADDRESSES, NAMES, Topology

__all__ = ["APP_SERVICE", "Lab"]

APP_SERVICE = "rag-service"
OTLP_PORT = 4318
_PROVIDER_NAME = "provider.lab"
_PROVIDER_URL = f"https://{_PROVIDER_NAME}:8443"
_EMBEDDINGS_URL = "http://embeddings.lab:8080"
_VECTORDB_URL = "http://vectordb.lab:8080"
_DOCUMENTS = "/var/tmp"  # noqa: S108 (a nameless file there, gone with the process; on disk, where /run is memory)
_MODULES = ("aiohttp", "dns", "opentelemetry.exporter.otlp.proto.http", "opentelemetry.sdk", "prometheus_client", "scipy", "trustme")


@dataclass
class Lab:
    """Start everything on entry (what a killed run left is removed first), end everything on exit.

    provider_options, retrieval_options, app_options: further command-line options of these services.
    Raises CannotError when a package, program or capability is missing or a service does not come up.
    """

    provider_options: Sequence[str] = ()
    retrieval_options: Sequence[str] = ()
    app_options: Sequence[str] = ()
    topology: Topology = field(default_factory=Topology)
    services: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Lab:
        _check_packages()
        recover_stale()
        self.topology.__enter__()
        try:
            self._start()
        except BaseException:
            self.topology.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.services.values()):  # the application first, so that its last calls are answered
            process.terminate()
        self.topology.close()
        for process in self.services.values():
            if process.stdout:
                process.stdout.close()
        self.services.clear()

    def _start(self) -> None:
        ca, certificate = _make_certificates(self.topology.files)
        records = [word for name, role in NAMES.items() for word in ("--record", f"{name}={ADDRESSES[role]}")]
        self._service("dns", "lab-dns", "dns_server", ["--listen", ADDRESSES["dns"], *records])
        provider = ["--host", ADDRESSES["llm"], "--certificate", str(certificate), "--allow-faults", *self.provider_options]
        self._service("llm", "llm-provider", "provider", provider)
        retrieval = ["--host", ADDRESSES["retrieval"], "--allow-faults", *self.retrieval_options]
        self._service("retrieval", "retrieval-backend", "retrieval", retrieval)
        urls = ["--provider", _PROVIDER_URL, "--embeddings", _EMBEDDINGS_URL, "--vectordb", _VECTORDB_URL, "--ca", str(ca)]
        app = ["--host", ADDRESSES["app"], *urls, "--documents", _DOCUMENTS, "--drain", "1", "--allow-faults", *self.app_options]
        self._service("app", APP_SERVICE, "rag_service", app)
        for service, process in self.services.items():
            _await_ready(service, process, self.topology.files / f"{service}.log")

    def _service(self, role: str, service: str, module: str, options: Sequence[str]) -> None:
        with (self.topology.files / f"{service}.log").open("wb") as log:
            self.services[service] = self.topology.spawn(
                role,
                [sys.executable, "-m", f"libslo.lab.{module}", *options],
                env=resource_environment(service, f"http://{ADDRESSES['obs']}:{OTLP_PORT}"),
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def check(self) -> None:
        """CannotError with the last words of a service that has ended although nobody asked it to."""
        for service, process in self.services.items():
            if process.poll() is not None:
                raise CannotError(f"{service} ended with {process.returncode}: {_last_words(self.topology.files / f'{service}.log')}")

    def load(self, options: Sequence[str], stdout: int | IO[Any]) -> subprocess.Popen[bytes]:
        """Start loadgen in the client role against the application; options: what to send, and further ones of loadgen."""
        env: Mapping[str, str] = resource_environment("load-client", f"http://{ADDRESSES['obs']}:{OTLP_PORT}")
        command = [sys.executable, "-c", "from slotools.loadgen import main; main()", "-q", "--url", "http://rag.lab:8080", *options]
        return self.topology.spawn("client", command, env=env, stdout=stdout)


def _check_packages() -> None:
    from importlib.util import find_spec

    for module in _MODULES:
        try:
            missing = find_spec(module) is None
        except ModuleNotFoundError:
            missing = True
        if missing:
            raise CannotError(f"the Python package {module} is not installed", hint="pip install 'llm-slo-ebpf-toolkit[lab]'")


def _make_certificates(directory: Path) -> tuple[Path, Path]:
    """A certificate authority of this run and the provider's key and chain; paths of both PEM files."""
    import trustme

    authority = trustme.CA()
    ca, certificate = directory / "ca.pem", directory / "provider.pem"
    authority.cert_pem.write_to_path(str(ca))
    authority.issue_cert(_PROVIDER_NAME).private_key_and_cert_chain_pem.write_to_path(str(certificate))
    certificate.chmod(0o600)
    return ca, certificate


def _await_ready(service: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 30) -> None:
    assert process.stdout is not None  # noqa: S101 (spawned with a pipe)
    deadline = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        ready = selector.select(max(0.0, deadline - time.monotonic()))
    if not ready or process.stdout.readline() != b"ready\n":
        raise CannotError(f"{service} did not come up: {_last_words(log)}", hint="python -m libslo.lab.<service> --help shows its options")


def _last_words(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
