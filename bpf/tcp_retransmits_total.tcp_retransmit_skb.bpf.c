// SPDX-License-Identifier: MIT
/*
 * TCP segments sent again, through the tcp_retransmit_skb and tcp_retransmit_synack tracepoints.
 *
 * Both fire from timers and in softirq, where `current` is whoever was interrupted: the owner is the process that
 * connected the socket, for accepted sockets the one that listened on the port, and otherwise only the socket's cgroup.
 * The value is segments as in the kernel's own Tcp RetransSegs, so one call that sends a GSO skb again counts them all.
 */
#include "slo_sock.h"

char LICENSE[] SEC("license") = "GPL";

struct listener_key {
	__u32 netns;
	__u32 port;
};

struct port_listener {
	struct slo_owner owner;
	/*
	 * Of the listening socket: with SO_REUSEPORT the last one to listen is kept, and only it removes the entry.
	 * 0: user space wrote this entry for a socket that listened before this program (libslo/kernel/listeners.py).
	 */
	__u64 cookie;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct slo_owner);
} connect_owners SEC(".maps");

/* LRU: a forgotten listener costs a name, not an event; its retransmits are then charged to the socket's cgroup. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct listener_key);
	__type(value, struct port_listener);
} listeners SEC(".maps");

static __always_inline void listener_appears(const struct slo_config *config, const struct sock *sk,
					     const struct listener_key *key)
{
	struct port_listener listener = {};

	slo_owner_is_current(config, &listener.owner);
	listener.cookie = bpf_get_socket_cookie((void *)sk);
	bpf_map_update_elem(&listeners, key, &listener, BPF_ANY);
}

static __always_inline void listener_leaves(const struct sock *sk, const struct listener_key *key)
{
	struct port_listener *listener = bpf_map_lookup_elem(&listeners, key);

	if (listener && (!listener->cookie || listener->cookie == bpf_get_socket_cookie((void *)sk)))
		bpf_map_delete_elem(&listeners, key);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(slo_retransmit_owner, const struct sock *sk, const int oldstate, const int newstate)
{
	slo_hit();

	const struct slo_config *config;
	struct listener_key key = {};
	struct slo_owner *owner;

	if (!sk || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	/* LISTEN -> SYN_RECV is no end of listening: a child starts as a copy of its listener, inet_csk_clone_lock(). */
	if (newstate != TCP_SYN_SENT && newstate != TCP_LISTEN && (oldstate != TCP_LISTEN || newstate != TCP_CLOSE))
		return 0;
	config = slo_configuration();
	if (!config)
		return 0;
	if (newstate == TCP_SYN_SENT) {
		owner = bpf_sk_storage_get(&connect_owners, (void *)sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		if (owner)
			slo_owner_is_current(config, owner);
		return 0;
	}
	key.netns = slo_netns_of(&sk->__sk_common);
	if (newstate == TCP_LISTEN) {
		key.port = sk->__sk_common.skc_num;
		listener_appears(config, sk, &key);
	} else {
		/* tcp_set_state(TCP_CLOSE) has given the port back (skc_num is 0); inet_sport still names it. */
		struct tcp_sock *tp = bpf_skc_to_tcp_sock((void *)sk);

		if (tp) {
			key.port = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
			listener_leaves(sk, &key);
		}
	}
	return 0;
}

static __always_inline void retransmit(const struct sock *sk, const struct sock_common *flow, __u32 segments, __u32 flags)
{
	const struct slo_config *config = slo_configuration();
	struct slo_event event = {};
	struct slo_owner *owner = NULL;
	bool passes;

	if (!config || !slo_wanted(config, SLO_TCP_RETRANSMIT))
		return;
	event.ts_ns = bpf_ktime_get_ns();
	event.kind = SLO_TCP_RETRANSMIT;
	event.value = segments ? segments : 1;
	event.protocol = IPPROTO_TCP;
	event.flags = flags;
	event.tcp_state = flow->skc_state;
	slo_event_set_flow(&event, flow);
	if (!(flags & SLO_F_SYNACK))
		owner = bpf_sk_storage_get(&connect_owners, (void *)sk, NULL, 0);
	if (!owner) {
		struct listener_key key = {.netns = event.netns, .port = event.sport};
		struct port_listener *listener = bpf_map_lookup_elem(&listeners, &key);

		if (listener) {
			owner = &listener->owner;
			event.flags |= SLO_F_ACCEPTED;
		}
	}
	if (owner) {
		slo_event_set_owner(&event, owner);
		passes = owner->passes;
	} else {
		event.cgroup_id = slo_sock_cgroup_id(sk);
		passes = !config->n_pids && !config->has_comm && slo_cgroup_id_passes(config, event.cgroup_id);
	}
	slo_emit(config, &event, passes);
}

/*
 * Raw arguments: since 6.16 there is a third one, err, and before it a retransmission that this host itself refused
 * stayed silent. RetransSegs counts those too, so err is not looked at.
 */
SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(slo_retransmit_skb, const struct sock *sk, const struct sk_buff *skb)
{
	slo_hit();

	const struct tcp_skb_cb *cb = NULL; /* for its layout only */
	__u32 low, high;

	if (!sk || !skb)
		return 0;
	/* TCP_SKB_CB(skb)->tcp_gso_segs, byte by byte: the verifier takes skb->cb for what it is declared as, char[48]. */
	low = (__u8)skb->cb[bpf_core_field_offset(cb->tcp_gso_segs)];
	high = (__u8)skb->cb[bpf_core_field_offset(cb->tcp_gso_segs) + 1];
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	retransmit(sk, &sk->__sk_common, low | high << 8, 0);
#else
	retransmit(sk, &sk->__sk_common, high | low << 8, 0);
#endif
	return 0;
}

SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(slo_retransmit_synack, const struct sock *sk, const struct request_sock *req)
{
	slo_hit();

	if (!sk || !req)
		return 0;
	retransmit(sk, &req->__req_common, 1, SLO_F_SYNACK);
	return 0;
}
