// SPDX-License-Identifier: MIT
/*
 * TCP segments sent again, through sock_ops: for kernels that do not describe their types.
 *
 * The callback comes in timers and in softirq, where `current` is whoever was interrupted: the owner is kept with the socket,
 * from connect() or, for accepted sockets, from the bind() of the listening one, whose storage the kernel copies to its children.
 * The value is segments as in the kernel's own Tcp RetransSegs, except for SYN-ACKs, which have no socket yet.
 */
#include "slo_sockops.h"

char LICENSE[] SEC("license") = "GPL";

/* libslo/kernel/listeners.py writes it for sockets that listened before this program. */
struct socket_owner {
	struct slo_owner owner;
	__u32 bound; /* at bind(): it has not connected, so it listens or was accepted by one that does */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct socket_owner);
} socket_owners SEC(".maps");

/* A macro: what the context is differs by hook, and the verifier wants to see the socket as it came. */
#define REMEMBER_OWNER(sk, is_bound)                                                                                             \
	do {                                                                                                                     \
		const struct slo_config *config = slo_configuration();                                                           \
		struct socket_owner *owner;                                                                                      \
                                                                                                                                 \
		if (!config)                                                                                                     \
			return WATCH;                                                                                            \
		owner = bpf_sk_storage_get(&socket_owners, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);                                \
		if (!owner)                                                                                                      \
			return WATCH;                                                                                            \
		slo_owner_is_current(config, &owner->owner);                                                                     \
		owner->bound = is_bound;                                                                                         \
	} while (0)

static __always_inline int connects(struct bpf_sock_addr *ctx)
{
	if (ctx->protocol == IPPROTO_TCP && ctx->sk)
		REMEMBER_OWNER(ctx->sk, false);
	return WATCH;
}

SEC("cgroup/connect4")
int slo_retransmit_connect4(struct bpf_sock_addr *ctx)
{
	slo_hit();

	return connects(ctx);
}

SEC("cgroup/connect6")
int slo_retransmit_connect6(struct bpf_sock_addr *ctx)
{
	slo_hit();

	return connects(ctx);
}

static __always_inline int binds(struct bpf_sock *sk)
{
	if (sk->protocol == IPPROTO_TCP)
		REMEMBER_OWNER(sk, true);
	return WATCH;
}

SEC("cgroup/post_bind4")
int slo_retransmit_bind4(struct bpf_sock *sk)
{
	slo_hit();

	return binds(sk);
}

SEC("cgroup/post_bind6")
int slo_retransmit_bind6(struct bpf_sock *sk)
{
	slo_hit();

	return binds(sk);
}

static __always_inline void retransmit(const struct slo_config *config, struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct slo_event event = {};
	struct socket_owner *owner;
	bool passes;

	if (!sk)
		return;
	event.ts_ns = bpf_ktime_get_ns();
	event.kind = SLO_TCP_RETRANSMIT;
	event.value = ctx->args[1];
	event.tcp_state = ctx->state;
	slo_event_set_ends(&event, ctx);
	owner = bpf_sk_storage_get(&socket_owners, sk, NULL, 0);
	if (owner) {
		slo_event_set_owner(&event, &owner->owner);
		if (owner->bound)
			event.flags |= SLO_F_ACCEPTED;
		passes = owner->owner.passes;
	} else {
		passes = slo_unknown_passes(config);
	}
	slo_emit(config, &event, passes);
}

SEC("sockops")
int slo_retransmit_sock_ops(struct bpf_sock_ops *ctx)
{
	slo_hit();

	const struct slo_config *config;

	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		slo_ask_callbacks(ctx, BPF_SOCK_OPS_RETRANS_CB_FLAG);
		return WATCH;
	case BPF_SOCK_OPS_RETRANS_CB:
		config = slo_configuration();
		if (config && slo_wanted(config, SLO_TCP_RETRANSMIT))
			retransmit(config, ctx);
	}
	return WATCH;
}
