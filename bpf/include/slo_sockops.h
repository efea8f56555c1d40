/* SPDX-License-Identifier: MIT */
/*
 * Watching TCP from sock_ops: contexts with a stable layout only, so that no type of the kernel need be known.
 *
 * Such a program gives its verdict in the return value and its answer to the kernel in `reply`: these return WATCH and leave
 * `reply` alone, which for every operation that asks for one is the kernel's default.
 */
#ifndef SLO_SOCKOPS_H
#define SLO_SOCKOPS_H

#define BPF_NO_PRESERVE_ACCESS_INDEX
#include "slo_core.h"

#define WATCH 1

/* Ask for further callbacks of this socket, beside those that other programs have asked for. */
static __always_inline void slo_ask_callbacks(struct bpf_sock_ops *ctx, __u32 flags)
{
	__u32 asked = ctx->bpf_sock_ops_cb_flags;

	if ((asked & flags) != flags)
		bpf_sock_ops_cb_flags_set(ctx, asked | flags);
}

/* The connection from this end's point of view. */
static __always_inline void slo_event_set_ends(struct slo_event *event, struct bpf_sock_ops *ctx)
{
	__u32 *from = (__u32 *)event->saddr;
	__u32 *to = (__u32 *)event->daddr;

	event->protocol = IPPROTO_TCP;
	event->family = ctx->family;
	event->sport = ctx->local_port;
	event->dport = bpf_ntohl(ctx->remote_port);
	if (event->family == SLO_AF_INET) {
		from[0] = ctx->local_ip4;
		to[0] = ctx->remote_ip4;
	} else if (event->family == SLO_AF_INET6) {
		from[0] = ctx->local_ip6[0];
		from[1] = ctx->local_ip6[1];
		from[2] = ctx->local_ip6[2];
		from[3] = ctx->local_ip6[3];
		to[0] = ctx->remote_ip6[0];
		to[1] = ctx->remote_ip6[1];
		to[2] = ctx->remote_ip6[2];
		to[3] = ctx->remote_ip6[3];
	}
}

/* For a socket whose process was never at hand. */
static __always_inline bool slo_unknown_passes(const struct slo_config *config)
{
	return !config->n_pids && !config->has_comm && !config->n_cgroups;
}

#endif
