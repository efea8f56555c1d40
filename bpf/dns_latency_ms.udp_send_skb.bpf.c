// SPDX-License-Identifier: MIT
/*
 * DNS waits over UDP, through fentry where a datagram leaves its sender and where one is queued to a socket.
 *
 * ip_send_skb() and ip6_send_skb() run in sendmsg(), so the process at hand is the one that asks, before netfilter can
 * redirect the packet; __udp_enqueue_schedule_skb() sees the answer after netfilter has put the asked address back.
 * Unlike cgroup_skb this costs TCP nothing. The packet's bytes need bpf_probe_read_kernel.
 */
#include "slo_dns.h"

char LICENSE[] SEC("license") = "GPL";

#define PROTOCOL_IP 0x0800

struct ends {
	__u8 saddr[16];
	__u8 daddr[16];
	__be16 source;
	__be16 dest;
	struct dns_header dns;
};

/* Addresses, ports and the DNS header; false when one of them cannot be read. */
static __always_inline bool read_ends(const struct sk_buff *skb, __u16 family, struct ends *ends)
{
	const unsigned char *network = skb->head + skb->network_header;
	const unsigned char *transport = skb->head + skb->transport_header;

	if (family == SLO_AF_INET)
		return !bpf_probe_read_kernel(ends->saddr, 4, network + bpf_core_field_offset(struct iphdr, saddr)) &&
		       !bpf_probe_read_kernel(ends->daddr, 4, network + bpf_core_field_offset(struct iphdr, daddr)) &&
		       !bpf_probe_read_kernel(&ends->dns, sizeof(ends->dns), transport + sizeof(struct udphdr));
	return !bpf_probe_read_kernel(ends->saddr, 16, network + bpf_core_field_offset(struct ipv6hdr, saddr)) &&
	       !bpf_probe_read_kernel(ends->daddr, 16, network + bpf_core_field_offset(struct ipv6hdr, daddr)) &&
	       !bpf_probe_read_kernel(&ends->dns, sizeof(ends->dns), transport + sizeof(struct udphdr));
}

/* Type of the first question, 0 when its name is longer than this looks. */
static __always_inline __u16 question_type(const unsigned char *question)
{
	__be16 type = 0;

	for (int i = 0; i < DNS_MAX_LABELS; i++) {
		__u8 length;

		if (bpf_probe_read_kernel(&length, 1, question))
			return 0;
		if (!length) {
			if (bpf_probe_read_kernel(&type, 2, question + 1))
				return 0;
			return bpf_ntohs(type);
		}
		if (length > 63)
			return 0;
		question += 1 + length;
	}
	return 0;
}

static __always_inline int query(struct sk_buff *skb, __u16 family)
{
	const struct slo_config *config;
	struct sock *sk = skb->sk;
	struct dns_start start = {};
	struct slo_owner owner = {};
	struct dns_key key = {};
	struct ends ends = {};
	const unsigned char *transport;

	/* Raw and ICMP sockets come this way, too. */
	if (!sk || sk->sk_protocol != IPPROTO_UDP)
		return 0;
	transport = skb->head + skb->transport_header;
	if (bpf_probe_read_kernel(&ends.source, 4, transport) || ends.dest != bpf_htons(DNS_PORT))
		return 0;
	if (skb->len < skb->transport_header - skb->network_header + sizeof(struct udphdr) + DNS_HEADER_LEN)
		return 0;
	if (!read_ends(skb, family, &ends))
		return 0;
	if ((bpf_ntohs(ends.dns.flags) & (DNS_FLAG_QR | DNS_OPCODE_MASK)) || ends.dns.qdcount != bpf_htons(1))
		return 0;
	config = slo_configuration();
	if (!config || !slo_wanted(config, SLO_DNS_LATENCY))
		return 0;
	slo_owner_is_current(config, &owner);
	if (!owner.passes) {
		slo_count_filtered(SLO_DNS_LATENCY);
		return 0;
	}
	key.cookie = bpf_get_socket_cookie(sk);
	key.txid = bpf_ntohs(ends.dns.txid);
	key.protocol = IPPROTO_UDP;
	__builtin_memcpy(key.server, ends.daddr, 16);
	start.ts_ns = start.seen_ns = owner.seen_ns;
	start.cgroup_id = owner.cgroup_id;
	start.pid = owner.pid;
	start.tid = owner.tid;
	__builtin_memcpy(start.comm, owner.comm, sizeof(start.comm));
	__builtin_memcpy(start.saddr, ends.saddr, 16);
	start.family = family;
	start.sport = bpf_ntohs(ends.source);
	start.qtype = question_type(transport + sizeof(struct udphdr) + DNS_HEADER_LEN);
	dns_begin(&key, &start);
	return 0;
}

SEC("fentry/ip_send_skb")
int BPF_PROG(slo_dns_send4, struct net *net, struct sk_buff *skb)
{
	slo_hit();

	return query(skb, SLO_AF_INET);
}

SEC("fentry/ip6_send_skb")
int BPF_PROG(slo_dns_send6, struct sk_buff *skb)
{
	slo_hit();

	return query(skb, SLO_AF_INET6);
}

/* skb->data is behind the UDP header here: udp_csum_pull_header(). */
SEC("fentry/__udp_enqueue_schedule_skb")
int BPF_PROG(slo_dns_receive, struct sock *sk, struct sk_buff *skb)
{
	slo_hit();

	const struct slo_config *config;
	struct dns_key key = {};
	struct ends ends = {};
	__u16 family;

	if (bpf_probe_read_kernel(&ends.source, 4, skb->head + skb->transport_header) || ends.source != bpf_htons(DNS_PORT))
		return 0;
	if (skb->len - skb->data_len < DNS_HEADER_LEN)
		return 0;
	family = skb->protocol == bpf_htons(PROTOCOL_IP) ? SLO_AF_INET : SLO_AF_INET6;
	if (!read_ends(skb, family, &ends) || !(bpf_ntohs(ends.dns.flags) & DNS_FLAG_QR))
		return 0;
	config = slo_configuration();
	if (!config)
		return 0;
	key.cookie = bpf_get_socket_cookie(sk);
	key.txid = bpf_ntohs(ends.dns.txid);
	key.protocol = IPPROTO_UDP;
	__builtin_memcpy(key.server, ends.saddr, 16);
	dns_end(config, &key, bpf_ntohs(ends.dns.flags));
	return 0;
}
