// SPDX-License-Identifier: MIT
/*
 * DNS waits, from a query to its answer, by parsing port 53 where packets leave and enter sockets.
 *
 * cgroup_skb on the root cgroup2 sees every socket of the machine, in whatever network namespace: egress starts a wait,
 * ingress ends it. The key is (socket, server, transaction id), never a pid: a resolver sends A and AAAA in one sendmmsg
 * and takes the answers in any order. No process can be asked there (ingress is softirq), so the owner is remembered
 * with the socket when it connects to port 53, or sends to it unconnected.
 * A wait that nobody answers is taken out of the map and reported by user space, which owns the time-out.
 */
/* Stable structs only: no access is relocated, so it loads on a kernel that does not describe its types. */
#define BPF_NO_PRESERVE_ACCESS_INDEX
#include "slo_dns.h"

char LICENSE[] SEC("license") = "GPL";

#define ALLOW 1 /* these programs only watch: every path lets the packet or the call through */
#define IP_FRAGMENT_OFFSET 0x1fff

struct dns_owner {
	__u64 seen_ns;
	__u32 pid;
	__u32 tid;
	char comm[SLO_COMM_LEN];
	__u8 daddr[16]; /* where an unconnected socket last sent, before any DNAT */
	__u16 family;
	__u16 pad[3];
};

/* The kernel frees it with the socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct dns_owner);
} dns_owners SEC(".maps");

struct packet {
	__u8 saddr[16];
	__u8 daddr[16];
	__u16 family;
	__u16 sport;
	__u16 dport;
	__u8 protocol;
	__u32 payload; /* offset of the DNS message */
	__u32 end;
};

/*
 * Fills `packet` and returns true for a DNS message of the wanted direction. Ports are compared before anything
 * else is read: this runs for every packet of every socket.
 */
static __always_inline bool parse(struct __sk_buff *skb, struct packet *packet, bool egress)
{
	struct {
		__be16 source;
		__be16 dest;
	} ports;
	__u32 l4;

	if (skb->protocol == bpf_htons(0x0800)) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
			return false;
		packet->protocol = ip.protocol;
		if (ip.protocol != IPPROTO_UDP && ip.protocol != IPPROTO_TCP)
			return false;
		if (ip.frag_off & bpf_htons(IP_FRAGMENT_OFFSET))
			return false;
		l4 = ip.ihl * 4;
		packet->family = SLO_AF_INET;
		packet->end = bpf_ntohs(ip.tot_len);
		*(__u32 *)packet->saddr = ip.saddr;
		*(__u32 *)packet->daddr = ip.daddr;
	} else if (skb->protocol == bpf_htons(0x86dd)) {
		struct ipv6hdr ip6;

		if (bpf_skb_load_bytes(skb, 0, &ip6, sizeof(ip6)))
			return false;
		packet->protocol = ip6.nexthdr;
		if (ip6.nexthdr != IPPROTO_UDP && ip6.nexthdr != IPPROTO_TCP)
			return false;
		l4 = sizeof(ip6);
		packet->family = SLO_AF_INET6;
		packet->end = sizeof(ip6) + bpf_ntohs(ip6.payload_len);
		__builtin_memcpy(packet->saddr, &ip6.saddr, 16);
		__builtin_memcpy(packet->daddr, &ip6.daddr, 16);
	} else {
		return false;
	}
	if (bpf_skb_load_bytes(skb, l4, &ports, sizeof(ports)))
		return false;
	packet->sport = bpf_ntohs(ports.source);
	packet->dport = bpf_ntohs(ports.dest);
	if (!egress && packet->sport != DNS_PORT)
		return false;
	/* Egress with another port may still be DNS: a container's name server is often reached through DNAT. */
	if (packet->protocol == IPPROTO_UDP) {
		packet->payload = l4 + sizeof(struct udphdr);
	} else {
		__u8 words;

		if (egress && packet->dport != DNS_PORT)
			return false;
		if (bpf_skb_load_bytes(skb, l4 + 12, &words, 1))
			return false;
		packet->payload = l4 + (words >> 4) * 4 + 2; /* the two bytes are the message's length */
	}
	return packet->payload + DNS_HEADER_LEN <= packet->end;
}

/* Type of the first question, 0 when its name is longer than this looks. */
static __always_inline __u16 question_type(struct __sk_buff *skb, __u32 offset)
{
	__be16 type = 0;

	for (int i = 0; i < DNS_MAX_LABELS; i++) {
		__u8 length;

		if (bpf_skb_load_bytes(skb, offset, &length, 1))
			return 0;
		if (!length) {
			if (bpf_skb_load_bytes(skb, offset + 1, &type, 2))
				return 0;
			return bpf_ntohs(type);
		}
		if (length > 63)
			return 0;
		offset += 1 + length;
	}
	return 0;
}

static __always_inline void keep_name(struct __sk_buff *skb, const struct dns_key *key, __u32 offset, __u32 end)
{
	struct dns_name name = {};
	__u32 last = end - offset - 1;

	if (end <= offset)
		return;
	if (last >= sizeof(name.labels))
		last = sizeof(name.labels) - 1;
	/* True already, but not to the verifier of 6.1: a length that it can follow, from 1 to all of them. */
	asm volatile("%0 &= %1" : "+r"(last) : "i"(DNS_NAME_LEN - 1));
	if (bpf_skb_load_bytes(skb, offset, name.labels, last + 1))
		return;
	bpf_map_update_elem(&dns_names, key, &name, BPF_ANY);
}

SEC("cgroup_skb/egress")
int slo_dns_query(struct __sk_buff *skb)
{
	slo_hit();

	const struct slo_config *config;
	struct packet packet = {};
	struct dns_header header;
	struct dns_start start = {};
	struct dns_key key = {};
	struct dns_owner *owner;
	struct bpf_sock *sk = skb->sk;
	bool passes;

	if (!sk || !parse(skb, &packet, true))
		return ALLOW;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return ALLOW;
	owner = NULL;
	if (packet.dport != DNS_PORT) {
		/* Only a socket that named port 53 to connect() or sendmsg() has an owner here. */
		owner = bpf_sk_storage_get(&dns_owners, sk, NULL, 0);
		if (!owner)
			return ALLOW;
	}
	if (bpf_skb_load_bytes(skb, packet.payload, &header, sizeof(header)))
		return ALLOW;
	if ((bpf_ntohs(header.flags) & (DNS_FLAG_QR | DNS_OPCODE_MASK)) || header.qdcount != bpf_htons(1))
		return ALLOW;
	config = slo_configuration();
	if (!config || !slo_wanted(config, SLO_DNS_LATENCY))
		return ALLOW;
	if (!owner)
		owner = bpf_sk_storage_get(&dns_owners, sk, NULL, 0);

	/* The answer comes from the address that the application named, so that is the key, not what DNAT made of it. */
	key.cookie = bpf_get_socket_cookie(skb);
	key.txid = bpf_ntohs(header.txid);
	key.protocol = packet.protocol;
	__builtin_memcpy(key.server, packet.daddr, 16);
	if (sk->dst_port) {
		if (packet.family == SLO_AF_INET) {
			*(__u32 *)key.server = sk->dst_ip4;
		} else {
			__u32 *server = (__u32 *)key.server;

			server[0] = sk->dst_ip6[0];
			server[1] = sk->dst_ip6[1];
			server[2] = sk->dst_ip6[2];
			server[3] = sk->dst_ip6[3];
		}
	} else if (packet.dport != DNS_PORT && owner && owner->family == packet.family) {
		__builtin_memcpy(key.server, owner->daddr, 16);
	}

	start.cgroup_id = bpf_skb_cgroup_id(skb);
	if (owner) {
		start.seen_ns = owner->seen_ns;
		start.pid = owner->pid;
		start.tid = owner->tid;
		__builtin_memcpy(start.comm, owner->comm, sizeof(start.comm));
	}
	passes = !config->n_cgroups;
	for (__u32 i = 0; i < SLO_MAX_TARGETS; i++) {
		if (i >= config->n_cgroups)
			break;
		if (bpf_skb_ancestor_cgroup_id(skb, config->cgroup_levels[i]) == config->cgroup_ids[i])
			passes = true;
	}
	if (!passes || !slo_process_passes(config, start.pid, start.comm)) {
		slo_count_filtered(SLO_DNS_LATENCY);
		return ALLOW;
	}
	start.ts_ns = bpf_ktime_get_ns();
	start.family = packet.family;
	start.sport = packet.sport;
	start.qtype = question_type(skb, packet.payload + DNS_HEADER_LEN);
	__builtin_memcpy(start.saddr, packet.saddr, 16);
	if (config->names)
		keep_name(skb, &key, packet.payload + DNS_HEADER_LEN, packet.end);
	dns_begin(&key, &start);
	return ALLOW;
}

SEC("cgroup_skb/ingress")
int slo_dns_answer(struct __sk_buff *skb)
{
	slo_hit();

	const struct slo_config *config;
	struct packet packet = {};
	struct dns_header header;
	struct dns_key key = {};
	__u16 flags;

	if (!skb->sk || !parse(skb, &packet, false))
		return ALLOW;
	if (bpf_skb_load_bytes(skb, packet.payload, &header, sizeof(header)))
		return ALLOW;
	flags = bpf_ntohs(header.flags);
	if (!(flags & DNS_FLAG_QR))
		return ALLOW;
	config = slo_configuration();
	if (!config)
		return ALLOW;
	key.cookie = bpf_get_socket_cookie(skb);
	key.txid = bpf_ntohs(header.txid);
	key.protocol = packet.protocol;
	__builtin_memcpy(key.server, packet.saddr, 16);
	dns_end(config, &key, flags);
	return ALLOW;
}

static __always_inline void remember_owner(struct bpf_sock_addr *ctx, __u16 family)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct dns_owner *owner;

	if (ctx->user_port != bpf_htons(DNS_PORT) || !ctx->sk)
		return;
	/* A failure costs a name, not an event: it is then charged to the socket's cgroup. */
	owner = bpf_sk_storage_get(&dns_owners, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!owner)
		return;
	owner->seen_ns = bpf_ktime_get_ns();
	owner->pid = pid_tgid >> 32;
	owner->tid = (__u32)pid_tgid;
	bpf_get_current_comm(owner->comm, sizeof(owner->comm));
	owner->family = family; /* a constant of the hook: user_ip6 may not even be read in the IPv4 ones */
	if (family == SLO_AF_INET) {
		*(__u32 *)owner->daddr = ctx->user_ip4;
	} else {
		__u32 *server = (__u32 *)owner->daddr;

		server[0] = ctx->user_ip6[0];
		server[1] = ctx->user_ip6[1];
		server[2] = ctx->user_ip6[2];
		server[3] = ctx->user_ip6[3];
	}
}

SEC("cgroup/connect4")
int slo_dns_connect4(struct bpf_sock_addr *ctx)
{
	slo_hit();

	remember_owner(ctx, SLO_AF_INET);
	return ALLOW;
}

SEC("cgroup/connect6")
int slo_dns_connect6(struct bpf_sock_addr *ctx)
{
	slo_hit();

	remember_owner(ctx, SLO_AF_INET6);
	return ALLOW;
}

SEC("cgroup/sendmsg4")
int slo_dns_sendmsg4(struct bpf_sock_addr *ctx)
{
	slo_hit();

	remember_owner(ctx, SLO_AF_INET);
	return ALLOW;
}

SEC("cgroup/sendmsg6")
int slo_dns_sendmsg6(struct bpf_sock_addr *ctx)
{
	slo_hit();

	remember_owner(ctx, SLO_AF_INET6);
	return ALLOW;
}
