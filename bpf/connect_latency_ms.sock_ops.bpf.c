// SPDX-License-Identifier: MIT
/*
 * TCP connects, from SYN to ESTABLISHED or to failure, through sock_ops: for kernels that do not describe their types.
 *
 * The owner is remembered in cgroup/connect4 and connect6, where the process is at hand. No errno can be read here; what is
 * known of a failure is who ended the wait: the kernel's own timer, the application by closing the socket, or a peer that
 * answered with a reset. What is none of these (an ICMP error, shutdown(), ss -K) is a failure of unseen errno.
 */
#include "slo_sockops.h"

char LICENSE[] SEC("license") = "GPL";

struct connect_start {
	struct slo_owner owner;
	__u64 start_ns; /* 0: this socket is not connecting */
	__u32 segs_in;	/* of the socket when it began: any more are the peer's answer */
	__u16 expired;	/* the kernel's timer has given up */
	__u16 released; /* the application closes the socket */
};

/* The kernel frees it with the socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct connect_start);
} connect_starts SEC(".maps");

static __always_inline int remember_owner(struct bpf_sock_addr *ctx)
{
	const struct slo_config *config;
	struct connect_start *start;

	if (ctx->protocol != IPPROTO_TCP || !ctx->sk)
		return WATCH;
	config = slo_configuration();
	if (!config)
		return WATCH;
	/* A failure costs a name, not an event. */
	start = bpf_sk_storage_get(&connect_starts, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (start)
		slo_owner_is_current(config, &start->owner);
	return WATCH;
}

SEC("cgroup/connect4")
int slo_connect_connect4(struct bpf_sock_addr *ctx)
{
	slo_hit();

	return remember_owner(ctx);
}

SEC("cgroup/connect6")
int slo_connect_connect6(struct bpf_sock_addr *ctx)
{
	slo_hit();

	return remember_owner(ctx);
}

/* Runs in close(), before the protocol's own part of it. */
SEC("cgroup/sock_release")
int slo_connect_release(struct bpf_sock *sk)
{
	slo_hit();

	struct connect_start *start = bpf_sk_storage_get(&connect_starts, sk, NULL, 0);

	if (start)
		start->released = 1;
	return WATCH;
}

static __always_inline void connect_begins(const struct slo_config *config, struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct connect_start *start;

	if (!sk)
		return;
	start = bpf_sk_storage_get(&connect_starts, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!start) {
		/* How it will end is unknown now, so the loss is booked where a healthy connect would be. */
		slo_count_dropped(slo_wanted(config, SLO_CONNECT_LATENCY) ? SLO_CONNECT_LATENCY : SLO_CONNECT_ERROR);
		return;
	}
	if (!start->owner.seen_ns)
		start->owner.passes = slo_unknown_passes(config);
	start->start_ns = bpf_ktime_get_ns();
	start->segs_in = ctx->segs_in;
	start->expired = start->released = 0;
	slo_ask_callbacks(ctx, BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTO_CB_FLAG);
}

static __always_inline void connect_ends(const struct slo_config *config, struct bpf_sock_ops *ctx, __u16 kind)
{
	struct bpf_sock *sk = ctx->sk;
	struct slo_event event = {};
	struct connect_start *start;

	if (!sk)
		return;
	start = bpf_sk_storage_get(&connect_starts, sk, NULL, 0);
	if (!start || start->start_ns <= config->since_ns)
		return; /* accepted, or connecting since before this program */
	event.ts_ns = bpf_ktime_get_ns();
	event.duration_ns = event.ts_ns - start->start_ns;
	start->start_ns = 0;
	event.kind = kind;
	if (!slo_wanted(config, kind))
		return;
	event.value = 1;
	slo_event_set_owner(&event, &start->owner);
	slo_event_set_ends(&event, ctx);
	event.tcp_state = BPF_TCP_ESTABLISHED;
	if (kind == SLO_CONNECT_ERROR) {
		event.tcp_state = BPF_TCP_CLOSE;
		if (start->expired) {
			event.err = SLO_ETIMEDOUT;
		} else if (start->released) {
			event.err = SLO_ECANCELED;
			event.flags |= SLO_F_CLOSED;
		} else {
			event.err = ctx->segs_in != start->segs_in ? SLO_ECONNREFUSED : SLO_ERR_UNSEEN;
		}
	}
	slo_emit(config, &event, start->owner.passes);
}

/* tcp_write_timeout() says so right before it gives up. */
static __always_inline void timer_fires(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct connect_start *start;

	if (!sk || !ctx->args[2])
		return;
	start = bpf_sk_storage_get(&connect_starts, sk, NULL, 0);
	if (start)
		start->expired = 1;
}

SEC("sockops")
int slo_connect_sock_ops(struct bpf_sock_ops *ctx)
{
	slo_hit();

	const struct slo_config *config;
	__u32 op = ctx->op;

	if (op == BPF_SOCK_OPS_RTO_CB) {
		timer_fires(ctx);
		return WATCH;
	}
	if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_STATE_CB)
		return WATCH;
	config = slo_configuration();
	if (!config)
		return WATCH;
	if (op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		connect_begins(config, ctx);
	else if (op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		connect_ends(config, ctx, SLO_CONNECT_LATENCY);
	else if (ctx->args[1] == BPF_TCP_CLOSE && (ctx->args[0] == BPF_TCP_SYN_SENT || ctx->args[0] == BPF_TCP_SYN_RECV))
		connect_ends(config, ctx, SLO_CONNECT_ERROR);
	return WATCH;
}
