// SPDX-License-Identifier: MIT
/*
 * TCP connects, from SYN to ESTABLISHED or to failure, through the inet_sock_set_state tracepoint.
 *
 * CLOSE -> SYN_SENT happens inside connect(), so the process at hand is the right one even for non-blocking sockets,
 * whose connect() returns long before the answer. The end comes in softirq and charges the owner remembered then.
 * Carries connect_latency_ms and connect_errors_total, accounts apart: a connect is an attempt of the signal it ends as.
 */
#include "slo_sock.h"

char LICENSE[] SEC("license") = "GPL";

struct connect_start {
	struct slo_owner owner;
	__u64 start_ns; /* 0: this socket is not connecting */
};

/* Socket storage rather than a hash: it cannot fill up, and the kernel frees it with the socket on every path. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct connect_start);
} connect_starts SEC(".maps");

static __always_inline void connect_begins(const struct slo_config *config, const struct sock *sk)
{
	struct connect_start *start;

	start = bpf_sk_storage_get(&connect_starts, (void *)sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!start) {
		/* How it will end is unknown now, so the loss is booked where a healthy connect would be. */
		slo_count_dropped(slo_wanted(config, SLO_CONNECT_LATENCY) ? SLO_CONNECT_LATENCY : SLO_CONNECT_ERROR);
		return;
	}
	slo_owner_is_current(config, &start->owner);
	start->start_ns = start->owner.seen_ns;
}

static __always_inline void connect_ends(const struct slo_config *config, const struct sock *sk, int newstate)
{
	struct slo_event event = {};
	struct connect_start *start;
	struct tcp_sock *tp;

	start = bpf_sk_storage_get(&connect_starts, (void *)sk, NULL, 0);
	if (!start || start->start_ns <= config->since_ns)
		return; /* accepted, or connecting since before this program */

	event.ts_ns = bpf_ktime_get_ns();
	event.duration_ns = event.ts_ns - start->start_ns;
	start->start_ns = 0;
	event.kind = newstate == TCP_ESTABLISHED ? SLO_CONNECT_LATENCY : SLO_CONNECT_ERROR;
	if (!slo_wanted(config, event.kind))
		return;
	event.value = 1;
	event.protocol = IPPROTO_TCP;
	event.tcp_state = newstate;
	slo_event_set_owner(&event, &start->owner);
	slo_event_set_flow(&event, &sk->__sk_common);
	/* tcp_set_state(TCP_CLOSE) has given the port back (skc_num is 0); inet_sport still names it. */
	tp = bpf_skc_to_tcp_sock((void *)sk);
	if (tp)
		event.sport = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
	if (newstate == TCP_CLOSE) {
		/*
		 * A peer's or the network's refusal is in sk_err by now. None there: this end gave up. __tcp_close()
		 * sets sk_shutdown first; otherwise connect() itself failed before a SYN could leave.
		 */
		event.err = sk->sk_err;
		if (!event.err) {
			event.err = SLO_ECANCELED;
			if (sk->sk_shutdown)
				event.flags |= SLO_F_CLOSED;
		}
	}
	slo_emit(config, &event, start->owner.passes);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(slo_connect_state, const struct sock *sk, const int oldstate, const int newstate)
{
	slo_hit();

	const struct slo_config *config;

	if (!sk || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (newstate != TCP_SYN_SENT && oldstate != TCP_SYN_SENT && oldstate != TCP_SYN_RECV)
		return 0;
	config = slo_configuration();
	if (!config)
		return 0;
	if (newstate == TCP_SYN_SENT)
		connect_begins(config, sk);
	else if (newstate == TCP_ESTABLISHED || newstate == TCP_CLOSE)
		connect_ends(config, sk, newstate);
	/* SYN_SENT -> SYN_RECV is a simultaneous open: the wait goes on. */
	return 0;
}
