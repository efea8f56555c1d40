"""Faults of a service that can be told to misbehave: a lease that is renewed every second, so that it ends with its maker."""

from __future__ import annotations

import secrets
import threading
import time
from typing import Any

from libslo.errors import CannotError, SloError
from libslo.lab.faults.base import Injector
from libslo.lab.faults.control import LEASE_S, ask_control
from libslo.lab.netns import netns_inode

__all__ = ["ServiceFault"]

_RENEW_S = 1.0


class ServiceFault(Injector):
    """provider_*, retrieval_slowdown and app_stall: told to the service's fault control, from inside its own namespace in the lab."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._ident = f"{self.fault.replace('_', '-')}-{secrets.token_hex(6)}"
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._served = 0
        self._lost = ""  # why the lease was lost, once it was

    def check(self) -> None:
        """The service must be there and have a fault control."""
        self._control("GET")

    def put_on(self) -> None:
        """Tell the service, and renew it from a thread."""
        self._served = self._served_now(self._control("GET"))
        netns = None if self.target.netns is None else [netns_inode(self.target.netns), str(self.target.netns)]
        self.remember([{"do": "lease", "url": self.target.url, "id": self._ident, "netns": netns, "ca": self.target.ca}])
        self._renew()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def verify(self) -> dict[str, float]:
        """How many requests the service has changed since; CannotError when the fault is not active or once was not."""
        said = self._control("GET")
        if self._lost:
            raise CannotError(
                f"{self.fault} was off for a while: {self._lost}", source=self.target.url, hint="see whether the service was restarted"
            )
        if self._ident not in {one.get("id") for one in said["active"]}:
            raise CannotError(f"{self.fault} did not take: the service does not list it as active", source=self.target.url)
        return {"served": self._served_now(said) - self._served}

    def stop_renewing(self) -> None:
        """End the thread that renews."""
        self._stop.set()
        if self._thread:
            self._thread.join()
            self._thread = None

    def _renew(self) -> None:
        body = {"id": self._ident, "fault": self.fault, "parameters": self.parameters, "lease_s": LEASE_S, "seed": 1}
        self._control("POST", body)

    def _keep(self) -> None:
        renewed_s = time.monotonic()
        while not self._stop.wait(_RENEW_S):
            try:
                self._renew()
            except SloError as error:
                if time.monotonic() - renewed_s > LEASE_S and not self._stop.is_set():
                    self._lost = str(error)
                continue
            now_s = time.monotonic()
            if now_s - renewed_s > LEASE_S:
                self._lost = f"the service answered only after {now_s - renewed_s:.1f} s: the fault went off in between"
            renewed_s = now_s

    def _control(self, method: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return ask_control(self.target.url, method, self.target.netns, body=body, ca=self.target.ca)

    def _served_now(self, said: dict[str, Any]) -> int:
        served = said.get("served", {})
        return int(served.get(self.fault, 0)) if isinstance(served, dict) else 0
