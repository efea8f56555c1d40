"""The agent's options for pod names, and the resolver that they ask for."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from libslo.errors import CannotError, InputError

if TYPE_CHECKING:
    from libslo.kernel.identity import IdentityResolver
    from libslo.kernel.kube_http import Place

__all__ = ["KubeSettings", "kube_place", "open_resolver", "pod_options"]

F = TypeVar("F", bound=Callable[..., Any])

# Where Kubernetes puts the credentials of a pod: https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_FIRST_ANSWER_S = 3.0  # the first events are worth this wait; later ones do not wait at all


@dataclass(frozen=True, slots=True)
class KubeSettings:
    """Where pod names come from; neither kubelet nor kube_api: nowhere."""

    kubelet: str | None = None
    kube_api: str | None = None
    kube_token: str | None = None
    kube_ca: str | None = None
    kube_insecure: bool = False
    node_name: str | None = None


def pod_options(command: F) -> F:
    """--kubelet, --kube-api, --kube-token, --kube-ca, --kube-insecure, --node-name: handed over as one `kube`."""

    @functools.wraps(command)
    def wrapper(**options: Any) -> Any:
        kube = KubeSettings(**{name: options.pop(name) for name in KubeSettings.__slots__})
        if kube.kubelet and kube.kube_api:
            raise click.UsageError("--kubelet and --kube-api: one source of pod names is enough")
        if kube.kube_insecure and kube.kube_ca:
            raise click.UsageError("--kube-insecure and --kube-ca contradict each other")
        if (kube.kube_token or kube.kube_ca or kube.kube_insecure) and not (kube.kubelet or kube.kube_api):
            raise click.UsageError("--kube-token, --kube-ca and --kube-insecure go with --kubelet or --kube-api")
        return command(kube=kube, **options)

    stack = (
        click.option("--kubelet", metavar="URL", help="Name pods from this node's kubelet, such as https://127.0.0.1:10250."),
        click.option("--kube-api", metavar="URL|in-cluster", help="Name pods from the API server instead, those of this node only."),
        click.option("--kube-token", metavar="FILE", help="Bearer token, read anew for each question.  [default: the pod's own]"),
        click.option("--kube-ca", metavar="FILE", help="Authority that signed the server's certificate.  [default: the pod's own]"),
        click.option("--kube-insecure", is_flag=True, help="Do not verify the server's certificate; the token goes to whoever answers."),
        click.option(
            "--node-name", metavar="NAME", envvar="SLO_NODE_NAME", help="This node.  [env: SLO_NODE_NAME; default: the host name]"
        ),
    )
    made: Any = wrapper
    for option in reversed(stack):
        made = option(made)
    return made  # type: ignore[no-any-return]


def kube_place(kube: KubeSettings, environ: Mapping[str, str], service_account: Path = SERVICE_ACCOUNT) -> Place:
    """Where to ask and as whom. InputError for what is no URL, CannotError for in-cluster outside of one."""
    from libslo.kernel.kube_http import Place

    option, url = ("--kubelet", kube.kubelet) if kube.kubelet else ("--kube-api", kube.kube_api or "")
    if option == "--kube-api" and url == "in-cluster":
        host = environ.get("KUBERNETES_SERVICE_HOST")
        port = environ.get("KUBERNETES_SERVICE_PORT_HTTPS") or environ.get("KUBERNETES_SERVICE_PORT") or "443"
        if not host:
            raise CannotError("KUBERNETES_SERVICE_HOST is not set: this is no pod", source=option, hint="name the API server's URL")
        url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    token = Path(kube.kube_token) if kube.kube_token else service_account / "token"
    ca = Path(kube.kube_ca) if kube.kube_ca else service_account / "ca.crt"
    return Place(
        url=_checked_url(url, option).removesuffix("/pods") if kube.kubelet else _checked_url(url, option),
        token=token if kube.kube_token or token.is_file() else None,
        ca=ca if kube.kube_ca or (ca.is_file() and not kube.kube_insecure) else None,
        insecure=kube.kube_insecure,
    )


def _checked_url(url: str, option: str) -> str:
    parts = urlsplit(url)
    try:
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.query and not parts.fragment
    except ValueError:  # a port that is no number
        good = False
    if not good or "@" in parts.netloc:
        raise InputError("not a URL of the form https://HOST:PORT", source=option, hint="secrets go into --kube-token, never into the URL")
    return url.rstrip("/")


@contextmanager
def open_resolver(kube: KubeSettings, say: Callable[[str], None]) -> Iterator[IdentityResolver]:
    """A resolver with the source of pods that was asked for, which ends with the block.

    A source that does not answer is no obstacle: it is said, and asked again while events go on with uid and container id.
    """
    from libslo.kernel.identity import IdentityResolver, default_node

    node = default_node(kube.node_name)
    if not (kube.kubelet or kube.kube_api):
        yield IdentityResolver(node=node)
        return
    from libslo.kernel.kube_source import ApiSource, KubeletSource

    place = kube_place(kube, os.environ)
    source = KubeletSource(place) if kube.kubelet else ApiSource(place, node)
    try:
        answered = source.wait_first(_FIRST_ANSWER_S)
        status = source.status()
        if not status.last_success_unix_ns:
            why = status.last_error if answered else f"no answer in {_FIRST_ANSWER_S:g} s"
            say(f"{place.url}: {why}: going on without pod names until it answers")
        yield IdentityResolver(node=node, pods=source)
    finally:
        source.close()
