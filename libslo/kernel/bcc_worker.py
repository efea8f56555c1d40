"""Measure one network signal with BCC and print it as JSON lines; run by the system's Python, which has Debian's python3-bpfcc.

Imports nothing of libslo. Usage: bcc_worker.py SIGNAL PARENT_PID DNS_TIMEOUT_NS drop|keep: its capabilities, once it has attached.
Lines: {"ready": true} or {"error": text} first; then events, with the fields of struct slo_event, addresses in hex; and
{"dropped": n}, since the start, when the ring was full.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import struct
import sys
import time
from typing import Any

COMMON = """
#include <net/sock.h>
#include <net/tcp.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/skbuff.h>

struct owner {
    u64 seen_ns;
    u64 cgroup_id;
    u32 pid;
    u32 tid;
    char comm[16];
};
struct event { /* flat: BCC's Python reads no struct within one */
    u64 ts_ns;
    u64 duration_ns;
    u64 value;
    u64 start_ns;
    u64 cgroup_id;
    u32 pid;
    u32 tid;
    char comm[16];
    u8 saddr[16];
    u8 daddr[16];
    u16 family;
    u16 sport;
    u16 dport;
    u16 txid;
    u16 qtype;
    u16 rcode;
    u16 flags;
    u16 tcp_state;
};
BPF_RINGBUF_OUTPUT(events, 64);
BPF_ARRAY(dropped, u64, 1);

static inline void own(struct owner *owner)
{
    u64 id = bpf_get_current_pid_tgid();
    owner->seen_ns = bpf_ktime_get_ns();
    owner->cgroup_id = bpf_get_current_cgroup_id();
    owner->pid = id >> 32;
    owner->tid = id;
    bpf_get_current_comm(owner->comm, sizeof(owner->comm));
}

static inline void charge(struct event *event, struct owner *owner)
{
    event->start_ns = owner->seen_ns;
    event->cgroup_id = owner->cgroup_id;
    event->pid = owner->pid;
    event->tid = owner->tid;
    __builtin_memcpy(event->comm, owner->comm, sizeof(event->comm));
}

static inline void emit(struct event *event)
{
    if (events.ringbuf_output(event, sizeof(*event), 0))
        dropped.atomic_increment(0);
}
"""

# As bpf/dns_latency_ms.udp_send_skb.bpf.c; a socket is known by its address, which is another's after it has gone.
DNS = """
struct dns_header { u16 txid; u16 flags; u16 qdcount; };
struct wait_key { u64 sk; u8 server[16]; u64 txid; };
struct wait { struct owner owner; u8 saddr[16]; u16 family; u16 sport; u16 qtype; u16 pad; };
BPF_HASH(starts, struct wait_key, struct wait, 16384);

static inline void addresses(unsigned char *network, u16 family, u8 *saddr, u8 *daddr)
{
    if (family == AF_INET) {
        bpf_probe_read_kernel(saddr, 4, network + offsetof(struct iphdr, saddr));
        bpf_probe_read_kernel(daddr, 4, network + offsetof(struct iphdr, daddr));
    } else {
        bpf_probe_read_kernel(saddr, 16, network + offsetof(struct ipv6hdr, saddr));
        bpf_probe_read_kernel(daddr, 16, network + offsetof(struct ipv6hdr, daddr));
    }
}

static inline int query(struct sk_buff *skb, u16 family)
{
    struct sock *sk = skb->sk;
    unsigned char *network = skb->head + skb->network_header;
    unsigned char *transport = skb->head + skb->transport_header;
    struct { u16 source; u16 dest; } ports = {};
    struct dns_header dns = {};
    struct wait start = {};
    struct wait_key key = {};
    u8 daddr[16] = {};

    if (!sk || sk->sk_protocol != IPPROTO_UDP)
        return 0;
    bpf_probe_read_kernel(&ports, sizeof(ports), transport);
    if (ports.dest != htons(53))
        return 0;
    bpf_probe_read_kernel(&dns, sizeof(dns), transport + 8);
    if ((dns.flags & htons(0xf800)) || dns.qdcount != htons(1))
        return 0;
    own(&start.owner);
    addresses(network, family, start.saddr, key.server);
    start.family = family;
    start.sport = ntohs(ports.source);
    transport += 8 + 12;
    for (int i = 0; i < 32; i++) {
        u8 length = 64;
        bpf_probe_read_kernel(&length, 1, transport);
        if (length > 63)
            break;
        if (!length) {
            bpf_probe_read_kernel(&start.qtype, 2, transport + 1);
            start.qtype = ntohs(start.qtype);
            break;
        }
        transport += 1 + length;
    }
    key.sk = (u64)sk;
    key.txid = ntohs(dns.txid);
    if (starts.insert(&key, &start) && !starts.lookup(&key))
        dropped.atomic_increment(0);
    return 0;
}

int kprobe__ip_send_skb(struct pt_regs *ctx, struct net *net, struct sk_buff *skb) { return query(skb, AF_INET); }
int kprobe__ip6_send_skb(struct pt_regs *ctx, struct sk_buff *skb) { return query(skb, AF_INET6); }

int kprobe____udp_enqueue_schedule_skb(struct pt_regs *ctx, struct sock *sk, struct sk_buff *skb)
{
    unsigned char *network = skb->head + skb->network_header;
    unsigned char *transport = skb->head + skb->transport_header;
    struct event event = {};
    struct dns_header dns = {};
    struct wait_key key = {};
    struct wait *start;
    u16 source = 0, protocol;

    bpf_probe_read_kernel(&source, 2, transport);
    if (source != htons(53))
        return 0;
    bpf_probe_read_kernel(&dns, sizeof(dns), transport + 8);
    if (!(dns.flags & htons(0x8000)))
        return 0;
    protocol = skb->protocol;
    event.family = protocol == htons(ETH_P_IP) ? AF_INET : AF_INET6;
    addresses(network, event.family, key.server, event.saddr);
    key.sk = (u64)sk;
    key.txid = ntohs(dns.txid);
    start = starts.lookup(&key);
    if (!start)
        return 0;
    event.ts_ns = bpf_ktime_get_ns();
    charge(&event, &start->owner);
    event.duration_ns = event.ts_ns - start->owner.seen_ns;
    event.value = 1;
    __builtin_memcpy(event.saddr, start->saddr, 16);
    __builtin_memcpy(event.daddr, key.server, 16);
    event.sport = start->sport;
    event.dport = 53;
    event.txid = key.txid;
    event.qtype = start->qtype;
    event.rcode = ntohs(dns.flags) & 15;
    event.flags = dns.flags & htons(0x0200) ? 2 : 0;
    if (!starts.delete(&key))
        emit(&event);
    return 0;
}
"""

# The owner: who connected, who accepted, or who listens; the tracepoints themselves come in timers and softirq.
TCP = """
BPF_TABLE("lru_hash", u64, struct owner, owners, 65536);

static inline int remember(struct sock *sk)
{
    struct owner owner = {};
    u64 key = (u64)sk;

    own(&owner);
    owners.update(&key, &owner);
    return 0;
}

int kprobe__tcp_connect(struct pt_regs *ctx, struct sock *sk) { return remember(sk); }
int kprobe__inet_csk_listen_start(struct pt_regs *ctx, struct sock *sk) { return remember(sk); }
int kretprobe__inet_csk_accept(struct pt_regs *ctx)
{
    struct sock *sk = (struct sock *)PT_REGS_RC(ctx);
    return sk ? remember(sk) : 0;
}
int kprobe__tcp_v4_destroy_sock(struct pt_regs *ctx, struct sock *sk)
{
    u64 key = (u64)sk;
    owners.delete(&key);
    return 0;
}

static inline int sent_again(struct sock *sk, struct sock_common *flow, u16 segments, u16 flags)
{
    struct event event = {};
    struct owner *owner;
    u64 key = (u64)sk;
    u16 dport = flow->skc_dport; /* BCC finds no pointer in a macro's argument */

    event.ts_ns = bpf_ktime_get_ns();
    event.value = segments ? segments : 1;
    event.flags = flags;
    event.tcp_state = flow->skc_state;
    event.family = flow->skc_family;
    event.sport = flow->skc_num;
    event.dport = ntohs(dport);
    if (event.family == AF_INET) {
        bpf_probe_read_kernel(event.saddr, 4, &flow->skc_rcv_saddr);
        bpf_probe_read_kernel(event.daddr, 4, &flow->skc_daddr);
    } else {
        bpf_probe_read_kernel(event.saddr, 16, &flow->skc_v6_rcv_saddr);
        bpf_probe_read_kernel(event.daddr, 16, &flow->skc_v6_daddr);
    }
    owner = owners.lookup(&key);
    if (owner)
        charge(&event, owner);
    emit(&event);
    return 0;
}

TRACEPOINT_PROBE(tcp, tcp_retransmit_skb)
{
    struct sk_buff *skb = (struct sk_buff *)args->skbaddr;
    struct sock *sk = (struct sock *)args->skaddr;
    u16 segments = 0;

    bpf_probe_read_kernel(&segments, sizeof(segments),
                          (char *)skb + offsetof(struct sk_buff, cb) + offsetof(struct tcp_skb_cb, tcp_gso_segs));
    return sent_again(sk, &sk->__sk_common, segments, 0);
}

TRACEPOINT_PROBE(tcp, tcp_retransmit_synack)
{
    struct request_sock *req = (struct request_sock *)args->req;
    return sent_again((struct sock *)args->skaddr, &req->__req_common, 1, 8);
}
"""

PROGRAMS = {"dns_latency_ms": DNS, "tcp_retransmits_total": TCP}
FLAG_TIMEOUT = 1  # SLO_F_TIMEOUT
PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
CAPABILITY_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
POLL_MS = 100
OUT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # BCC's libraries write to stdout as well


def readable(table: Any) -> None:
    """Before Linux 5.19, where unprivileged_bpf_disabled is set, even open maps need a capability to be read."""
    try:
        _ = table[0]
    except KeyError:
        raise OSError(errno.EPERM, "this kernel shows its maps only to those who keep their capabilities (--keep-capabilities)") from None


def write(line: dict[str, Any]) -> None:
    OUT.write(json.dumps(line) + "\n")


def write_event(event: Any) -> None:
    names = [name for name, _ in event._fields_ if name not in ("comm", "saddr", "daddr")]
    write({**{name: getattr(event, name) for name in names}, "comm": event.comm.decode("utf-8", "replace"),
           "saddr": bytes(event.saddr).hex(), "daddr": bytes(event.daddr).hex()})  # fmt: skip


def write_timeouts(starts: Any, timeout_ns: int) -> None:
    """Take out the waits that nobody has answered in time; whoever deletes an entry owns it."""
    now_ns = time.monotonic_ns()
    for key, start in list(starts.items()):
        owner, begun_ns = start.owner, start.owner.seen_ns
        if begun_ns > now_ns - timeout_ns:
            continue
        try:
            del starts[key]
        except KeyError:
            continue
        write({"ts_ns": begun_ns + timeout_ns, "duration_ns": timeout_ns, "value": 1, "family": start.family, "sport": start.sport,
               "dport": 53, "txid": key.txid, "qtype": start.qtype, "rcode": 0, "flags": FLAG_TIMEOUT, "err": errno.ETIMEDOUT,
               "start_ns": begun_ns, "cgroup_id": owner.cgroup_id, "pid": owner.pid, "tid": owner.tid,
               "comm": owner.comm.decode("utf-8", "replace"),
               "saddr": bytes(start.saddr).hex(), "daddr": bytes(key.server).hex()})  # fmt: skip


def drop_capabilities() -> None:
    """As libslo.kernel.privileges does, whose reasons hold here too; BCC's Python starts no threads."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("<Ii", CAPABILITY_VERSION_3, 0)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.capset(header, bytes(24)):
        raise OSError(ctypes.get_errno(), f"dropping capabilities: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    name, parent, timeout_ns, drop = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "drop"
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # it ended before it could be followed
    try:
        from bcc import BPF

        bpf = BPF(text=COMMON + PROGRAMS[name])
        ring = bpf["events"]
        ring.open_ring_buffer(lambda _cpu, data, _size: write_event(ring.event(data)))
        if drop:
            drop_capabilities()
            readable(bpf["dropped"])
    except Exception as error:  # BCC raises bare Exception
        write({"error": f"{type(error).__name__}: {error}"})
        OUT.flush()
        return
    write({"ready": True})
    OUT.flush()
    swept_ns, told = 0, 0
    while True:
        bpf.ring_buffer_poll(POLL_MS)
        if name == "dns_latency_ms" and time.monotonic_ns() - swept_ns > 10**9:
            swept_ns = time.monotonic_ns()
            write_timeouts(bpf["starts"], timeout_ns)
        lost = bpf["dropped"][0].value
        if lost != told:
            told = lost
            write({"dropped": lost})
        OUT.flush()


if __name__ == "__main__":
    main()
