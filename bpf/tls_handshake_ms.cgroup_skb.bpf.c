// SPDX-License-Identifier: MIT
/*
 * TLS handshakes as their client waits for them, by the records that leave and enter its socket.
 *
 * cgroup_skb on the root cgroup2 sees every socket of the machine, so it does not matter which library speaks TLS. A
 * ClientHello that leaves starts the wait. Its end, as the client sees it:
 *   TLS 1.3        the client sends its Finished: its first encrypted record after the ServerHello (RFC 8446 section 2)
 *   up to TLS 1.2  the server's Finished arrives, or, when a session is resumed, the client sends its own (RFC 5246 7.3)
 *                  after the server's; or the client sends data without waiting for it (False Start, RFC 7918)
 * Finished is encrypted, but its record's type is not. An alert, or the end of the connection, before that is a failure.
 *
 * Records are found by the sequence number at which the next one must begin, so that payload is never taken for a header
 * and a retransmission is never counted twice. A socket whose handshake is over, and one that does not begin with TLS
 * soon, costs one look-up a packet. Nothing of the payload leaves the kernel.
 */
#define BPF_NO_PRESERVE_ACCESS_INDEX /* only the kernel's stable interface is read: no BTF of it is needed */
#include "slo_tls_records.h"

char LICENSE[] SEC("license") = "GPL";

#define ALLOW 1 /* these programs only watch: every path lets the packet or the call through */
#define ECONNRESET 104

#define TLS_MAX_LOOKS 16 /* packets with payload after which a socket is not expected to start TLS any more */

enum { PHASE_LOOKING = 0, PHASE_HANDSHAKE = 1, PHASE_OVER = 2 };

/* All that stays with a socket for its life. */
struct tls_mark {
	__u32 phase;
	__u32 looks;
};

/* Socket storage rather than a hash: it cannot fill up, and the kernel frees it with the socket on every path. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct tls_mark);
} tls_marks SEC(".maps");

/* Kept from connect() to the end of the handshake only. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct tls_wait);
} tls_waits SEC(".maps");

static __always_inline void set_flow(struct slo_event *event, struct bpf_sock *sk)
{
	__u32 *from = (__u32 *)event->saddr;
	__u32 *to = (__u32 *)event->daddr;

	event->protocol = IPPROTO_TCP;
	event->family = sk->family;
	event->sport = sk->src_port;
	event->dport = bpf_ntohs(sk->dst_port);
	if (event->family == SLO_AF_INET) {
		from[0] = sk->src_ip4;
		to[0] = sk->dst_ip4;
		return;
	}
	from[0] = sk->src_ip6[0];
	from[1] = sk->src_ip6[1];
	from[2] = sk->src_ip6[2];
	from[3] = sk->src_ip6[3];
	to[0] = sk->dst_ip6[0];
	to[1] = sk->dst_ip6[1];
	to[2] = sk->dst_ip6[2];
	to[3] = sk->dst_ip6[3];
}

/* Not inlined: it would double what the verifier has to look at. */
static __noinline void report(const struct slo_config *config, struct slo_event *event, bool passes)
{
	if (config && event && slo_wanted(config, event->kind))
		slo_emit(config, event, passes);
}

/* Whoever takes the socket out of the handshake owns its event: both directions may see an end at once. */
static __always_inline void finish(const struct slo_config *config, struct bpf_sock *sk, struct tls_mark *mark, struct tls_wait *wait,
				   const struct segment *segment, const struct verdict *verdict)
{
	struct slo_event event = {};
	__u32 seen = wait->seen;

	if (__sync_val_compare_and_swap(&mark->phase, PHASE_HANDSHAKE, PHASE_OVER) != PHASE_HANDSHAKE)
		return;
	if (wait->start_ns > config->since_ns) {
		event.kind = verdict->outcome ? SLO_TLS_FAIL : SLO_TLS_HANDSHAKE;
		if (verdict->lost) {
			slo_count_dropped(slo_wanted(config, SLO_TLS_HANDSHAKE) ? SLO_TLS_HANDSHAKE : SLO_TLS_FAIL);
		} else {
			event.ts_ns = bpf_ktime_get_ns();
			event.duration_ns = event.ts_ns - wait->start_ns;
			event.value = 1;
			event.cgroup_id = wait->cgroup_id;
			event.start_ns = wait->seen_ns;
			event.pid = wait->pid;
			event.tid = wait->tid;
			__builtin_memcpy(event.comm, wait->comm, sizeof(event.comm));
			set_flow(&event, sk);
			event.txid = wait->version;
			event.qtype = verdict->outcome;
			if (verdict->outcome == SLO_TLS_ALERT)
				event.rcode = verdict->alert;
			if (verdict->outcome == SLO_TLS_CLOSED && segment->rst)
				event.err = ECONNRESET;
			if (verdict->outcome && verdict->local)
				event.flags |= SLO_TLS_F_LOCAL;
			if (verdict->hidden)
				event.flags |= SLO_TLS_F_HIDDEN;
			if (seen & (SEEN_PSK | SEEN_SERVER_FINISHED))
				event.flags |= SLO_TLS_F_RESUMED;
			if (seen & SEEN_RETRY)
				event.flags |= SLO_TLS_F_RETRIED;
			if (seen & SEEN_EARLY_DATA)
				event.flags |= SLO_TLS_F_EARLY;
			report(config, &event, wait->passes);
		}
	}
	bpf_sk_storage_delete(&tls_waits, sk);
}

static __always_inline void handshake(const struct slo_config *config, struct __sk_buff *skb, struct bpf_sock *sk, struct tls_mark *mark,
				      struct tls_wait *wait, const struct segment *segment, bool egress)
{
	struct verdict verdict = {};

	if (!egress && segment->syn && (wait->seen & SEEN_SYN))
		wait->server.next = segment->seq;
	if (segment->bytes)
		follow(skb, segment, wait, egress, &verdict);
	if (verdict.hello)
		read_server_hello(skb, wait, verdict.hello);
	if (!verdict.over && (segment->fin || segment->rst)) {
		verdict.over = true;
		verdict.local = egress;
		verdict.outcome = SLO_TLS_CLOSED;
	}
	if (verdict.over)
		finish(config, sk, mark, wait, segment, &verdict);
}

static __always_inline bool passes_targets(const struct slo_config *config, struct __sk_buff *skb, const struct tls_wait *wait)
{
	bool passes = !config->n_cgroups;

	for (__u32 i = 0; i < SLO_MAX_TARGETS; i++) {
		if (i >= config->n_cgroups)
			break;
		if (bpf_skb_ancestor_cgroup_id(skb, config->cgroup_levels[i]) == config->cgroup_ids[i])
			passes = true;
	}
	return passes && slo_process_passes(config, wait->pid, wait->comm);
}

/* A segment with payload leaves a socket that is not known to be in a handshake, or past it. */
static __always_inline void look(const struct slo_config *config, struct __sk_buff *skb, struct bpf_sock *sk, struct tls_mark *mark,
				 const struct segment *segment)
{
	__u8 head[TLS_HELLO_HEAD];
	struct tls_wait *wait;

	if (bpf_skb_load_bytes(skb, segment->payload, head, sizeof(head)))
		return;
	if (!mark)
		mark = bpf_sk_storage_get(&tls_marks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!is_client_hello(head)) {
		if (!mark)
			return;
		mark->looks++;
		/* A server's first record tells that this socket is no client's. */
		if (mark->looks >= TLS_MAX_LOOKS || (head[0] == TLS_HANDSHAKE && head[1] == 3 && head[5] == TLS_SERVER_HELLO)) {
			mark->phase = PHASE_OVER;
			bpf_sk_storage_delete(&tls_waits, sk);
		}
		return;
	}
	wait = bpf_sk_storage_get(&tls_waits, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!mark || !wait) {
		/* How it will end is unknown now, so the loss is booked where a healthy handshake would be. */
		slo_count_dropped(slo_wanted(config, SLO_TLS_HANDSHAKE) ? SLO_TLS_HANDSHAKE : SLO_TLS_FAIL);
		return;
	}
	wait->start_ns = bpf_ktime_get_ns();
	wait->cgroup_id = bpf_skb_cgroup_id(skb);
	wait->passes = passes_targets(config, skb, wait);
	wait->client.next = segment->seq;
	wait->server.next = segment->ack; /* all that the client has read so far was not TLS */
	if (segment->syn)
		see(wait, SEEN_SYN);
	mark->phase = PHASE_HANDSHAKE;
	handshake(config, skb, sk, mark, wait, segment, true);
}

SEC("cgroup_skb/egress")
int slo_tls_egress(struct __sk_buff *skb)
{
	slo_hit();

	const struct slo_config *config;
	struct segment segment = {};
	struct bpf_sock *sk = skb->sk;
	struct tls_mark *mark;
	struct tls_wait *wait;

	if (!sk)
		return ALLOW;
	/* Almost every packet ends here, or in the ingress program's twin of this: nothing else comes before it. */
	mark = bpf_sk_storage_get(&tls_marks, sk, NULL, 0);
	if (mark && mark->phase == PHASE_OVER)
		return ALLOW;
	if ((!mark || mark->phase != PHASE_HANDSHAKE) && skb->len < TLS_MIN_PACKET)
		return ALLOW;
	sk = bpf_sk_fullsock(sk);
	if (!sk || sk->protocol != IPPROTO_TCP)
		return ALLOW;
	config = slo_configuration();
	if (!config || !parse(skb, &segment))
		return ALLOW;
	if (!mark || mark->phase != PHASE_HANDSHAKE) {
		if (segment.bytes >= TLS_MIN_HELLO)
			look(config, skb, sk, mark, &segment);
		return ALLOW;
	}
	wait = bpf_sk_storage_get(&tls_waits, sk, NULL, 0);
	if (wait)
		handshake(config, skb, sk, mark, wait, &segment, true);
	return ALLOW;
}

SEC("cgroup_skb/ingress")
int slo_tls_ingress(struct __sk_buff *skb)
{
	slo_hit();

	const struct slo_config *config;
	struct segment segment = {};
	struct bpf_sock *sk = skb->sk;
	struct tls_mark *mark;
	struct tls_wait *wait;

	if (!sk)
		return ALLOW;
	mark = bpf_sk_storage_get(&tls_marks, sk, NULL, 0);
	if (!mark || mark->phase != PHASE_HANDSHAKE)
		return ALLOW;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return ALLOW;
	config = slo_configuration();
	if (!config || !parse(skb, &segment))
		return ALLOW;
	wait = bpf_sk_storage_get(&tls_waits, sk, NULL, 0);
	if (wait)
		handshake(config, skb, sk, mark, wait, &segment, false);
	return ALLOW;
}

static __always_inline void remember_owner(struct bpf_sock_addr *ctx)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct tls_wait *wait;

	if (ctx->protocol != IPPROTO_TCP || !ctx->sk || !slo_configuration())
		return;
	/* A failure costs a name, not an event: it is then charged to the socket's cgroup. */
	wait = bpf_sk_storage_get(&tls_waits, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!wait)
		return;
	wait->seen_ns = bpf_ktime_get_ns();
	wait->pid = pid_tgid >> 32;
	wait->tid = (__u32)pid_tgid;
	bpf_get_current_comm(wait->comm, sizeof(wait->comm));
}

SEC("cgroup/connect4")
int slo_tls_connect4(struct bpf_sock_addr *ctx)
{
	slo_hit();

	remember_owner(ctx);
	return ALLOW;
}

SEC("cgroup/connect6")
int slo_tls_connect6(struct bpf_sock_addr *ctx)
{
	slo_hit();

	remember_owner(ctx);
	return ALLOW;
}
