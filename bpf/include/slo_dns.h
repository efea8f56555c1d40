/* SPDX-License-Identifier: MIT */
/*
 * Open DNS waits: the table that every DNS variant writes and user space sweeps (libslo/kernel/dns_waits.py).
 */
#ifndef SLO_DNS_H
#define SLO_DNS_H

#include "slo_core.h"

#define DNS_PORT 53
#define DNS_HEADER_LEN 12
#define DNS_MAX_LABELS 32
#define DNS_NAME_LEN 128
#define DNS_MAX_STARTS 16384
#define DNS_MAX_OPEN (DNS_MAX_STARTS / 4) /* of one cgroup */

enum {
	DNS_FLAG_QR = 0x8000,
	DNS_FLAG_TC = 0x0200,
	DNS_RCODE_MASK = 0x000f,
	DNS_OPCODE_MASK = 0x7800,
};

struct dns_header {
	__be16 txid;
	__be16 flags;
	__be16 qdcount;
	__be16 ancount;
	__be16 nscount;
	__be16 arcount;
};

struct dns_key {
	__u64 cookie;
	__u8 server[16];
	__u16 txid;
	__u16 protocol;
	__u32 pad;
};

/* libslo/kernel/events.py has the numpy twin: user space reads these when it sweeps. */
struct dns_start {
	__u64 ts_ns;
	__u64 seen_ns;
	__u64 cgroup_id;
	__u32 pid;
	__u32 tid;
	char comm[SLO_COMM_LEN];
	__u8 saddr[16];
	__u16 family;
	__u16 sport;
	__u16 qtype;
	__u16 pad;
};

/* A plain hash, not LRU: a start that finds it full is counted as dropped, while an eviction would be silent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, DNS_MAX_STARTS);
	__type(key, struct dns_key);
	__type(value, struct dns_start);
} dns_starts SEC(".maps");

/*
 * How many waits each cgroup has open, so that one whose name server is gone cannot fill the table of all. User space, which
 * reads the whole table when it sweeps, writes the true numbers over these: what an entry lost or won by a race lasts a second.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64); /* cgroup */
	__type(value, __s64);
} dns_open SEC(".maps");

struct dns_name {
	__u8 labels[DNS_NAME_LEN]; /* as in the message, RFC 1035 section 3.1; cut off when longer */
};

/* Names of questions, only when asked for: user space takes them out with the event, and LRU forgets what nobody takes. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, DNS_MAX_STARTS); /* user space makes it one entry when names are off */
	__type(key, struct dns_key);
	__type(value, struct dns_name);
} dns_names SEC(".maps");

const struct dns_key *dns_key_type __attribute__((unused));
const struct dns_start *dns_start_type __attribute__((unused));

static __always_inline bool has_room(__u64 cgroup_id)
{
	__s64 *open = bpf_map_lookup_elem(&dns_open, &cgroup_id);

	return !open || *open < DNS_MAX_OPEN;
}

static __always_inline void count_open(__u64 cgroup_id, __s64 change)
{
	__s64 *open = bpf_map_lookup_elem(&dns_open, &cgroup_id);

	if (open)
		__sync_fetch_and_add(open, change);
	else if (change > 0)
		bpf_map_update_elem(&dns_open, &cgroup_id, &change, BPF_NOEXIST);
}

/* Begin a wait, within the cgroup's share of the table. */
static __always_inline void dns_begin(const struct dns_key *key, const struct dns_start *start)
{
	long error;

	if (!has_room(start->cgroup_id) && !bpf_map_lookup_elem(&dns_starts, key)) {
		slo_count_rate_limited(SLO_DNS_LATENCY);
		return;
	}
	error = bpf_map_update_elem(&dns_starts, key, start, BPF_NOEXIST);
	if (!error)
		count_open(start->cgroup_id, 1);
	else if (error != -SLO_EEXIST) /* that one is a retry: the wait began with the first try */
		slo_count_dropped(SLO_DNS_LATENCY);
}

/* End the wait that this answer belongs to, if there is one. flags: of the answer, host byte order. */
static __always_inline void dns_end(const struct slo_config *config, const struct dns_key *key, __u16 flags)
{
	struct slo_event event = {};
	struct dns_start *start;

	start = bpf_map_lookup_elem(&dns_starts, key);
	if (!start)
		return;
	event.ts_ns = bpf_ktime_get_ns();
	event.duration_ns = event.ts_ns - start->ts_ns;
	event.value = key->cookie;
	event.kind = SLO_DNS_LATENCY;
	event.cgroup_id = start->cgroup_id;
	event.start_ns = start->seen_ns;
	event.pid = start->pid;
	event.tid = start->tid;
	__builtin_memcpy(event.comm, start->comm, sizeof(event.comm));
	event.family = start->family;
	event.sport = start->sport;
	event.dport = DNS_PORT;
	__builtin_memcpy(event.saddr, start->saddr, 16);
	__builtin_memcpy(event.daddr, key->server, 16);
	event.txid = key->txid;
	event.qtype = start->qtype;
	event.rcode = flags & DNS_RCODE_MASK;
	event.protocol = key->protocol;
	if (flags & DNS_FLAG_TC)
		event.flags |= SLO_F_TRUNCATED;
	/* Whoever deletes the entry owns the wait: a second answer, another CPU, or user space's sweep find nothing. */
	if (bpf_map_delete_elem(&dns_starts, key))
		return;
	count_open(event.cgroup_id, -1);
	if (event.ts_ns - event.duration_ns <= config->since_ns)
		return;
	slo_emit(config, &event, true);
}

#endif
