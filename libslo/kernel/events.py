"""Kernel records as numpy arrays, and the probe events made of them.

Pure: arrays in, dicts out; clock offset and identities are arguments.
"""

from __future__ import annotations

import errno as errno_names
import socket
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from libslo.kernel.handshakes import tls_attributes
from libslo.signals import signal

__all__ = [
    "DNS_KEY_DTYPE",
    "DNS_START_DTYPE",
    "EVENT_DTYPE",
    "FILE_CALLS",
    "FLAG_ACCEPTED",
    "FLAG_CLOSED",
    "FLAG_MEMCG",
    "FLAG_PREEMPTED",
    "FLAG_SYNACK",
    "FLAG_TIMEOUT",
    "FLAG_TRUNCATED",
    "FLAG_WRITE",
    "KINDS",
    "PCT_SCALE",
    "Who",
    "dns_timeouts",
    "probe_events",
]

_COMM_BYTES = 16

# struct slo_event, bpf/include/slo_event.h
EVENT_DTYPE = np.dtype(
    [
        ("ts_ns", "<u8"), ("duration_ns", "<u8"), ("value", "<u8"), ("cgroup_id", "<u8"), ("pid", "<u4"), ("tid", "<u4"),
        ("comm", f"S{_COMM_BYTES}"), ("kind", "<u2"), ("family", "<u2"), ("sport", "<u2"), ("dport", "<u2"),
        ("saddr", "V16"), ("daddr", "V16"), ("err", "<u4"), ("netns", "<u4"), ("txid", "<u2"), ("qtype", "<u2"),
        ("rcode", "<u2"), ("protocol", "u1"), ("flags", "u1"), ("tcp_state", "<u4"), ("device", "<u4"), ("start_ns", "<u8"),
    ]
)  # fmt: skip

# struct dns_key and struct dns_start, bpf/dns_latency_ms.cgroup_skb.bpf.c
DNS_KEY_DTYPE = np.dtype([("cookie", "<u8"), ("server", "V16"), ("txid", "<u2"), ("protocol", "<u2"), ("pad", "<u4")])
DNS_START_DTYPE = np.dtype(
    [
        ("ts_ns", "<u8"), ("seen_ns", "<u8"), ("cgroup_id", "<u8"), ("pid", "<u4"), ("tid", "<u4"), ("comm", f"S{_COMM_BYTES}"),
        ("saddr", "V16"), ("family", "<u2"), ("sport", "<u2"), ("qtype", "<u2"), ("pad", "<u2"),
    ]
)  # fmt: skip

# enum slo_kind
KINDS = {
    "dns_latency_ms": 1,
    "connect_latency_ms": 2,
    "connect_errors_total": 3,
    "tcp_retransmits_total": 4,
    "mem_reclaim_latency_ms": 5,
    "runqueue_delay_ms": 6,
    "cfs_throttled_ms": 7,
    "cpu_steal_pct": 8,
    "disk_io_latency_ms": 9,
    "tls_handshake_ms": 10,
    "tls_handshake_fail_total": 11,
    "syscall_latency_ms": 12,
}
FILE_CALLS = (3, 4, 7, 8, 9, 10, 11, 12)  # of enum slo_call, those that only a file with positions, or a device, lets succeed
PCT_SCALE = 1000  # a share travels in the integer `value` as thousandths of a percent
_SIGNAL_OF = {kind: name for name, kind in KINDS.items()}

# enum slo_flag
FLAG_TIMEOUT, FLAG_TRUNCATED, FLAG_CLOSED, FLAG_SYNACK, FLAG_ACCEPTED, FLAG_MEMCG, FLAG_PREEMPTED, FLAG_WRITE = 1, 2, 4, 8, 16, 32, 64, 128

_RCODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}  # RFC 1035 section 4.1.1, RFC 2136
_QTYPES = {
    1: "A",
    2: "NS",
    5: "CNAME",
    6: "SOA",
    12: "PTR",
    15: "MX",
    16: "TXT",
    28: "AAAA",
    33: "SRV",
    64: "SVCB",
    65: "HTTPS",
    255: "ANY",
}
# enum slo_call
_CALLS = ("", "read", "write", "pread64", "pwrite64", "readv", "writev", "preadv", "pwritev", "preadv2", "pwritev2", "fsync", "fdatasync")
# i_mode >> 12, inode(7)
_FILES = {0: "unknown", 1: "pipe", 2: "character device", 4: "directory", 6: "block device", 8: "regular", 10: "symlink", 12: "socket"}
_STORAGE = (4, 6, 8)
_NO_FD = 0xFFFFFFFF
_PROTOCOLS = {6: "tcp", 17: "udp"}
# include/net/tcp_states.h
_TCP_STATES = ("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT", "LAST_ACK",
               "LISTEN", "CLOSING", "NEW_SYN_RECV")  # fmt: skip
_ERRNO_UNSEEN = 4095  # SLO_ERR_UNSEEN: it failed, and the hook cannot see why
_MAPPED = b"\0" * 10 + b"\xff\xff"


class Who(Protocol):
    """What an event needs to know of its owner."""

    @property
    def node(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def pod(self) -> str: ...
    @property
    def container(self) -> str: ...
    @property
    def service(self) -> str: ...
    @property
    def workload(self) -> str: ...
    @property
    def ns_pid(self) -> int: ...


def probe_events(
    events: NDArray[Any],
    unix_offset_ns: int,
    identify: Callable[[int, int, str, int], Who],
) -> list[dict[str, Any]]:
    """Probe events (contract v1alpha1) of an array of kernel records, shape (n,), dtype EVENT_DTYPE, in its order.

    unix_offset_ns: Unix time minus CLOCK_MONOTONIC. identify: (pid, cgroup id, comm, ts_mono_ns when seen) -> owner.
    """
    columns = [events[name].tolist() for name in (
        "ts_ns", "duration_ns", "value", "cgroup_id", "pid", "tid", "comm", "kind", "family", "sport", "dport", "saddr", "daddr",
        "err", "netns", "txid", "qtype", "rcode", "protocol", "flags", "tcp_state", "device", "start_ns",
    )]  # fmt: skip
    catalogue = {kind: signal(name) for kind, name in _SIGNAL_OF.items()}
    addresses: dict[tuple[int, bytes], str] = {}
    result = []
    for (ts_ns, duration_ns, count, cgroup_id, pid, tid, comm, kind, family, sport, dport, saddr, daddr,
         err, netns, txid, qtype, rcode, protocol, flags, tcp_state, device, start_ns) in zip(*columns, strict=True):  # fmt: skip
        about = catalogue[kind]
        name = comm.decode("utf-8", "replace")
        who = identify(pid, cgroup_id, name, start_ns)
        attributes: dict[str, str | int | float | bool] = {}
        value: int | float = count
        if about.unit == "ms":
            value = duration_ns / 1e6
        elif about.unit == "pct":
            value = count / PCT_SCALE
        if kind == 1:
            attributes["dns.txid"] = txid
            attributes["dns.question.type"] = _QTYPES.get(qtype, f"TYPE{qtype}")
            if flags & FLAG_TIMEOUT:
                attributes["dns.outcome"] = "timeout"
            else:
                attributes["dns.outcome"] = "answer"
                attributes["dns.rcode"] = _RCODES.get(rcode, f"RCODE{rcode}")
            if flags & FLAG_TRUNCATED:
                attributes["dns.truncated"] = True
        elif kind == 3:
            attributes["connect.elapsed_ms"] = duration_ns / 1e6
            attributes["connect.outcome"] = _connect_outcome(err, flags)
        elif kind == 4:
            attributes["tcp.state"] = _TCP_STATES[tcp_state] if tcp_state < len(_TCP_STATES) else str(tcp_state)
            attributes["owner"] = _retransmit_owner(pid, cgroup_id, flags)
            if flags & FLAG_SYNACK:
                attributes["tcp.synack"] = True
        elif kind == 5:
            attributes["reclaim.scope"] = "cgroup" if flags & FLAG_MEMCG else "machine"
            attributes["reclaim.pages"] = count
        elif kind == 6:
            attributes["sched.after"] = "preemption" if flags & FLAG_PREEMPTED else "wakeup"
        elif kind in (10, 11):
            attributes.update(tls_attributes(kind == KINDS["tls_handshake_fail_total"], duration_ns, txid, qtype, rcode, flags))
        elif kind == 9:
            attributes["disk.operation"] = "write" if flags & FLAG_WRITE else "read"
            attributes["disk.device"] = f"{device >> 20}:{device & 0xFFFFF}"
            attributes["disk.queue_ms"] = (duration_ns - count) / 1e6
            attributes["disk.device_ms"] = count / 1e6
        status = "error" if err or rcode else about.status(value)
        if kind == 12:
            attributes["syscall.name"] = _CALLS[count] if count < len(_CALLS) else str(count)
            if device != _NO_FD:
                attributes["syscall.fd"] = device
            attributes["syscall.file"] = _FILES.get(tcp_state, "unknown")
            if count in FILE_CALLS or tcp_state in _STORAGE:
                attributes["syscall.waits_for"] = "storage"
            else:
                attributes["syscall.waits_for"] = "peer"  # or for its next request: however long, nothing is wrong
                status = "error" if err else "ok"
        if name:
            attributes["comm"] = name
        attributes["cgroup_id"] = cgroup_id
        if who.ns_pid:
            attributes["ns_pid"] = who.ns_pid  # what the process, and so its spans, take for its pid
        if netns:
            attributes["netns"] = netns
        event: dict[str, Any] = {
            "ts_unix_nano": ts_ns + unix_offset_ns,
            "signal": about.name,
            "node": who.node,
            "namespace": who.namespace,
            "pod": who.pod,
            "container": who.container,
            "pid": pid,
            "tid": tid,
            "value": value,
            "unit": about.unit,
            "status": status,
        }
        if family:
            source = addresses.get((family, saddr)) or addresses.setdefault((family, saddr), _address(family, saddr))
            target = addresses.get((family, daddr)) or addresses.setdefault((family, daddr), _address(family, daddr))
            event["conn_tuple"] = {
                "src_ip": source, "dst_ip": target, "src_port": sport, "dst_port": dport, "protocol": _PROTOCOLS[protocol],
            }  # fmt: skip
        if err and err != _ERRNO_UNSEEN:
            event["errno"] = err
        if who.service:
            event["service"] = who.service
        if who.workload:
            event["workload"] = who.workload
        event["attributes"] = attributes
        result.append(event)
    return result


def dns_timeouts(keys: NDArray[Any], starts: NDArray[Any], timeout_ns: int) -> NDArray[Any]:
    """Event records of DNS waits that nobody answered: shape (n,), ended when their time-out was over.

    keys, starts: arrays of shape (n,) taken out of the kernel's map, dtypes DNS_KEY_DTYPE and DNS_START_DTYPE.
    """
    events = np.zeros(keys.size, EVENT_DTYPE)
    for name in ("cgroup_id", "pid", "tid", "comm", "saddr", "family", "sport", "qtype"):
        events[name] = starts[name]
    events["ts_ns"] = starts["ts_ns"] + np.uint64(timeout_ns)
    events["duration_ns"] = timeout_ns
    events["start_ns"] = starts["seen_ns"]
    events["value"] = keys["cookie"]
    events["kind"] = KINDS["dns_latency_ms"]
    events["daddr"] = keys["server"]
    events["txid"] = keys["txid"]
    events["protocol"] = keys["protocol"]
    events["dport"] = 53
    events["err"] = errno_names.ETIMEDOUT
    events["flags"] = FLAG_TIMEOUT
    return events


def _connect_outcome(err: int, flags: int) -> str:
    if flags & FLAG_CLOSED:
        return "given up by the application"
    if err == errno_names.ECANCELED:
        return "connect() itself failed"
    if err == _ERRNO_UNSEEN:
        return "failed, reason not visible"
    return {errno_names.ECONNREFUSED: "refused", errno_names.ETIMEDOUT: "timed out"}.get(err, "unreachable")


def _retransmit_owner(pid: int, cgroup_id: int, flags: int) -> str:
    if flags & FLAG_ACCEPTED:
        return "listener"
    return "connect" if pid else "cgroup" if cgroup_id else "unknown"


def _address(family: int, packed: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, packed[:4])
    if packed[:12] == _MAPPED:
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)
