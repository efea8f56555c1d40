/* SPDX-License-Identifier: MIT */
/* Reading sockets by direct dereference, which works under lockdown=confidentiality where bpf_probe_read_kernel does not. */
#ifndef SLO_SOCK_H
#define SLO_SOCK_H

#include "slo_core.h"

static __always_inline __u32 slo_netns_of(const struct sock_common *common)
{
	const struct net *net = common->skc_net.net;

	return net ? net->ns.inum : 0;
}

/* The connection from this end's point of view; request sockets keep their addresses in the same struct. */
static __always_inline void slo_event_set_flow(struct slo_event *event, const struct sock_common *common)
{
	event->family = common->skc_family;
	event->netns = slo_netns_of(common);
	event->sport = common->skc_num;
	event->dport = bpf_ntohs(common->skc_dport);
	if (event->family == SLO_AF_INET) {
		*(__u32 *)event->saddr = common->skc_rcv_saddr;
		*(__u32 *)event->daddr = common->skc_daddr;
	} else if (event->family == SLO_AF_INET6) {
		__u32 *from = (__u32 *)event->saddr;
		__u32 *to = (__u32 *)event->daddr;

#pragma unroll
		for (int i = 0; i < 4; i++) {
			from[i] = common->skc_v6_rcv_saddr.in6_u.u6_addr32[i];
			to[i] = common->skc_v6_daddr.in6_u.u6_addr32[i];
		}
	}
}

/* The cgroup that a socket was created in; 0 when the kernel keeps none. */
static __always_inline __u64 slo_sock_cgroup_id(const struct sock *sk)
{
	const struct cgroup *cgroup = sk->sk_cgrp_data.cgroup;
	const struct kernfs_node *node = cgroup ? cgroup->kn : NULL;

	return node ? node->id : 0;
}

#endif
