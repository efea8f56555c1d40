"""Talk to the fault control of a service: ``POST``, ``GET`` and ``DELETE`` of ``/-/faults``."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from libslo.errors import CannotError, InputError
from libslo.lab.netns import call_in_netns

__all__ = ["LEASE_S", "ask_control", "delete_lease", "send_control"]

LEASE_S = 3.0  # a service ends a fault by itself after this long without a word from its maker
_PATH = "/-/faults"
_TIMEOUT_S = 2.0  # below the lease: a call that waits longer has lost it


def send_control(url: str, method: str, body: Mapping[str, Any] | None = None, ident: str = "", ca: str = "") -> dict[str, Any]:
    """One call from the namespace of the calling thread; what the service answered.

    ca: PEM file of the authority that signed the service's certificate; its name is not compared, since it is reached by address.
    Raises ConnectionError when nobody listens, CannotError when it gives no usable answer or has no fault control, InputError when it
    refuses the fault.
    """
    where = urlsplit(url)
    if where.scheme == "https" and ca and not Path(ca).is_file():
        raise CannotError("no certificate authority to check the service with", source=ca, hint="see whether the lab runs its services")
    host = where.hostname or ""
    try:
        if where.scheme == "https":
            context = ssl.create_default_context(cafile=ca or None)
            context.check_hostname = not ca
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(host, where.port, timeout=_TIMEOUT_S, context=context)
        else:
            connection = http.client.HTTPConnection(host, where.port, timeout=_TIMEOUT_S)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, _PATH + (f"/{ident}" if ident else ""), content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            status, text = answer.status, answer.read()
        finally:
            connection.close()
    except ConnectionError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise CannotError(f"no answer from the service: {error or type(error).__name__}", source=url + _PATH) from error
    if status == 404:
        raise CannotError("the service has no fault control", source=url + _PATH, hint="start it with --allow-faults")
    try:
        said: dict[str, Any] = json.loads(text)
        if status == 200 and isinstance(said["active"], list):
            return said
        reason = said["error"]
    except (ValueError, KeyError, TypeError):
        raise CannotError(f"not an answer of a fault control: {status} {text[:80]!r}", source=url + _PATH) from None
    raise InputError(f"the service refuses the fault: {reason}", source=url + _PATH)


def ask_control(
    url: str, method: str, netns: Path | None, *, body: Mapping[str, Any] | None = None, ident: str = "", ca: str = ""
) -> dict[str, Any]:
    """send_control from a namespace (None: from this one), in one family of errors."""

    def ask() -> dict[str, Any]:
        return send_control(url, method, body, ident, ca)

    try:
        return ask() if netns is None else call_in_netns(netns, ask)
    except ConnectionError as error:
        raise CannotError(f"cannot reach the service: {error.strerror or error}", source=url, hint="see whether it runs") from error


def delete_lease(url: str, ident: str, netns: Path | None, ca: str) -> bool:
    """End a fault by its id; False when the service has gone and its faults with it. CannotError when it does not answer."""
    try:
        if netns is None:
            send_control(url, "DELETE", None, ident, ca)
        else:
            call_in_netns(netns, lambda: send_control(url, "DELETE", None, ident, ca))
    except ConnectionError:
        return False
    return True
