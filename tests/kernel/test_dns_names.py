"""Names of DNS questions leave the kernel only when they were asked for."""

from __future__ import annotations

import json

import pytest
from kernel_harness import Namespace, Recording, first_line, server

pytestmark = pytest.mark.kernel

LONG = ".".join(["d5", *["x" * 40] * 4, "test"])
NAMES = ["d5.test", "nx.test", "drop.test", LONG, "d5.test"]


def ask(namespace: Namespace, *, names: bool) -> list[dict[str, object]]:
    """The attributes of a client's five waits in the order of their transaction ids."""
    plan = [{"family": 4, "connected": True, "together": False, "server": "127.0.0.1",
             "queries": [{"txid": index, "name": name, "qtype": 1} for index, name in enumerate(NAMES)]}]  # fmt: skip
    client = namespace.start("dns_client.py")
    assert client.stdin is not None
    client.stdin.write(json.dumps([plan, 0.5, 0.0]) + "\n")
    client.stdin.flush()
    first_line(client)
    settings = {"signals": ("dns_latency_ms",), "pids": (client.pid,), "names": names, "dns_timeout_ns": 200_000_000}
    with server(namespace, "dns_server.py"), Recording(**settings) as recording:
        client.communicate("go\n", timeout=60)
    return sorted((event["attributes"] for event in recording.events), key=lambda attributes: attributes["dns.txid"])


def test_each_wait_has_the_name_it_asked_for(namespace: Namespace) -> None:
    """With names on, answers, failures and time-outs carry their question's name; a long one is cut off and says so."""
    found = ask(namespace, names=True)
    assert [attributes["dns.question.name"] for attributes in found[:3]] == NAMES[:3]
    assert found[4]["dns.question.name"] == "d5.test"
    cut = str(found[3]["dns.question.name"])
    assert cut.endswith("…") and LONG.startswith(cut[:-1]) and len(cut) > 100


def test_by_default_no_name_is_read(namespace: Namespace) -> None:
    """With names off, no event has one."""
    found = ask(namespace, names=False)
    assert len(found) == 5
    assert not any("name" in key for attributes in found for key in attributes if key != "comm")
