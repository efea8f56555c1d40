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
#include "slo_core.h"

#include "slo_tls.h"

char LICENSE[] SEC("license") = "GPL";

#define ALLOW 1 /* these programs only watch: every path lets the packet or the call through */
#define ECONNRESET 104

#define TLS_RECORD_HEADER 5
#define TLS_HELLO_HEAD 11 /* record header, handshake header, version */
#define TLS_MIN_HELLO 50  /* record header, handshake header, version, random, and the lengths of what may be empty */
#define TLS_MIN_PACKET (20 + 20 + TLS_MIN_HELLO)
#define TLS_MAX_RECORD (16384 + 2048) /* RFC 5246 section 6.2.3 */
#define TLS_MAX_RECORDS 16		 /* of one packet; more are followed from their retransmission or not at all */
#define TLS_MAX_EXTENSIONS 8
#define TLS_MAX_LOOKS 16 /* packets with payload after which a socket is not expected to start TLS any more */
#define TLS_1_3 0x0304

/* Record types. */
enum { TLS_CHANGE_CIPHER_SPEC = 20, TLS_ALERT = 21, TLS_HANDSHAKE = 22, TLS_DATA = 23 };
/* Handshake messages, alerts, extensions. */
enum { TLS_CLIENT_HELLO = 1, TLS_SERVER_HELLO = 2 };
enum { TLS_WARNING = 1, TLS_CLOSE_NOTIFY = 0, TLS_USER_CANCELED = 90 };
enum { TLS_EXT_PRE_SHARED_KEY = 41, TLS_EXT_SUPPORTED_VERSIONS = 43 };

/*
 * Sizes of TLS 1.3 records, from those of their content: its type (1 byte) and the cipher's tag (16, or 8 for CCM_8) come
 * on top. An alert is 2 bytes, a Finished 4 and the length of a SHA-256 or a SHA-384.
 */
#define IS_HIDDEN_ALERT(length) ((length) == 2 + 17 || (length) == 2 + 9)
#define IS_FINISHED(length) ((length) == 36 + 17 || (length) == 52 + 17 || (length) == 36 + 9)

/* What has been seen of a handshake. */
enum {
	SEEN_SERVER = 1 << 0,
	SEEN_SERVER_HELLO = 1 << 1,
	SEEN_SERVER_CCS = 1 << 2,
	SEEN_SERVER_FINISHED = 1 << 3,
	SEEN_CLIENT_CCS = 1 << 4,
	SEEN_TLS_1_3 = 1 << 5,
	SEEN_RETRY = 1 << 6,
	SEEN_PSK = 1 << 7,
	SEEN_EARLY_DATA = 1 << 8,
	SEEN_SYN = 1 << 9, /* the ClientHello went out with it: where the answer begins is not known yet */
};

enum { PHASE_LOOKING = 0, PHASE_HANDSHAKE = 1, PHASE_OVER = 2 };

/* All that stays with a socket for its life. */
struct tls_mark {
	__u32 phase;
	__u32 looks;
};

/* One direction of a connection. */
struct tls_way {
	__u32 next; /* sequence number of the next byte of a record's header */
	__u8 have;  /* bytes of a header that was cut by the end of a segment */
	__u8 head[TLS_RECORD_HEADER];
	__u8 pad[2];
};

struct tls_wait {
	__u64 seen_ns;
	__u32 pid;
	__u32 tid;
	char comm[SLO_COMM_LEN];
	__u64 start_ns;
	__u64 cgroup_id;
	struct tls_way client;
	struct tls_way server;
	__u32 seen; /* both directions write it, on different CPUs */
	__u16 version;
	__u16 passes;
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

struct segment {
	__u32 payload; /* offset */
	__s32 bytes;
	__u32 seq;
	__u32 ack;
	bool syn;
	bool fin;
	bool rst;
};

struct verdict {
	bool over;
	bool lost; /* this program's own failure to follow */
	__u8 outcome;
	__u8 alert;
	bool hidden;
	bool local;
	__u32 hello; /* offset of a ServerHello's message; 0: none in this segment */
};

static __always_inline bool parse(struct __sk_buff *skb, struct segment *segment)
{
	struct tcphdr tcp;
	__u32 l4;
	__u8 byte;

	if (skb->protocol == bpf_htons(0x0800)) {
		if (bpf_skb_load_bytes(skb, 0, &byte, 1))
			return false;
		l4 = (byte & 15) * 4;
	} else if (skb->protocol == bpf_htons(0x86dd)) {
		if (bpf_skb_load_bytes(skb, 6, &byte, 1) || byte != IPPROTO_TCP)
			return false;
		l4 = sizeof(struct ipv6hdr);
	} else {
		return false;
	}
	if (bpf_skb_load_bytes(skb, l4, &tcp, sizeof(tcp)))
		return false;
	segment->payload = l4 + tcp.doff * 4;
	segment->bytes = skb->len - segment->payload; /* not the header's length: it is 0 in a packet over 64 KiB */
	segment->syn = tcp.syn;
	segment->fin = tcp.fin;
	segment->rst = tcp.rst;
	segment->seq = bpf_ntohl(tcp.seq) + tcp.syn;
	segment->ack = bpf_ntohl(tcp.ack_seq);
	return segment->bytes >= 0;
}

static __always_inline void see(struct tls_wait *wait, __u32 what)
{
	__sync_fetch_and_or(&wait->seen, what);
}

/* The description of an alert that counts; `left` bytes of the record are in this segment. */
static __always_inline void judge_alert(struct __sk_buff *skb, const struct tls_wait *wait, __u32 at, __s32 left, __u32 length,
					struct verdict *verdict)
{
	__u8 alert[2];

	verdict->outcome = SLO_TLS_ALERT;
	if (length != sizeof(alert) || left < (__s32)sizeof(alert) || bpf_skb_load_bytes(skb, at, alert, sizeof(alert))) {
		verdict->hidden = verdict->over = true;
		return;
	}
	verdict->alert = alert[1];
	/* TLS 1.3 has no levels; before it a warning lets the handshake go on. */
	if (alert[0] == TLS_WARNING && alert[1] != TLS_CLOSE_NOTIFY && (alert[1] == TLS_USER_CANCELED || !(wait->seen & SEEN_TLS_1_3)))
		return;
	verdict->over = true;
}

static __always_inline void judge_client(struct __sk_buff *skb, struct tls_wait *wait, __u8 type, __u32 length, __u32 at, __s32 left,
					 struct verdict *verdict)
{
	__u32 seen = wait->seen;

	if (type == TLS_CHANGE_CIPHER_SPEC) {
		see(wait, SEEN_CLIENT_CCS);
	} else if (type == TLS_ALERT) {
		judge_alert(skb, wait, at, left, length, verdict);
	} else if (type == TLS_HANDSHAKE) {
		if ((seen & SEEN_CLIENT_CCS) && (seen & SEEN_SERVER_FINISHED) && !(seen & SEEN_TLS_1_3))
			verdict->over = true;
	} else if (!(seen & SEEN_SERVER_HELLO)) {
		see(wait, SEEN_EARLY_DATA);
	} else if ((seen & SEEN_TLS_1_3) && IS_HIDDEN_ALERT(length)) {
		verdict->outcome = SLO_TLS_ALERT;
		verdict->hidden = verdict->over = true;
	} else if (!(seen & SEEN_EARLY_DATA) || IS_FINISHED(length)) {
		verdict->over = true;
	}
}

static __always_inline void judge_server(struct __sk_buff *skb, struct tls_wait *wait, __u8 type, __u32 length, __u32 at, __s32 left,
					 struct verdict *verdict)
{
	__u32 seen = wait->seen;
	__u8 message;

	see(wait, SEEN_SERVER);
	if (type == TLS_CHANGE_CIPHER_SPEC) {
		see(wait, SEEN_SERVER_CCS);
	} else if (type == TLS_ALERT) {
		judge_alert(skb, wait, at, left, length, verdict);
	} else if (type == TLS_HANDSHAKE) {
		if (!(seen & SEEN_SERVER_HELLO) || (seen & SEEN_RETRY)) {
			if (left < 1 || bpf_skb_load_bytes(skb, at, &message, 1) || message == TLS_SERVER_HELLO) {
				see(wait, SEEN_SERVER_HELLO);
				verdict->hello = at;
			}
		} else if ((seen & SEEN_SERVER_CCS) && !(seen & SEEN_TLS_1_3)) {
			if (seen & SEEN_CLIENT_CCS)
				verdict->over = true;
			else
				see(wait, SEEN_SERVER_FINISHED);
		}
	} else if (seen & SEEN_SERVER_HELLO) {
		/* Before the client's Finished only TLS 1.3 has a server send encrypted records that are not marked as handshake. */
		see(wait, SEEN_TLS_1_3);
		if (IS_HIDDEN_ALERT(length)) {
			verdict->outcome = SLO_TLS_ALERT;
			verdict->hidden = verdict->over = true;
		}
	}
}

/* Read on where a header was cut; true when it is whole. */
static __always_inline bool join_header(struct __sk_buff *skb, struct tls_way *way, __u32 at, __s32 left)
{
	for (int i = 0; i < TLS_RECORD_HEADER; i++) {
		__u32 have = way->have;

		if (have >= TLS_RECORD_HEADER)
			break;
		if (left <= i || bpf_skb_load_bytes(skb, at + i, &way->head[have], 1))
			return false;
		way->have = have + 1;
		way->next++;
	}
	return way->have == TLS_RECORD_HEADER;
}

/* Go from record to record through what is new of one segment. */
static __always_inline void follow(struct __sk_buff *skb, const struct segment *segment, struct tls_wait *wait, bool egress,
				   struct verdict *verdict)
{
	struct tls_way *way = egress ? &wait->client : &wait->server;

	verdict->local = egress;
	for (int i = 0; i < TLS_MAX_RECORDS; i++) {
		__s32 offset = way->next - segment->seq, left = segment->bytes - offset;
		__u32 at = segment->payload + offset, length;

		if (offset < 0 || left <= 0)
			return;
		if (way->have || left < TLS_RECORD_HEADER) {
			if (!join_header(skb, way, at, left))
				return;
			offset = way->next - segment->seq;
			left = segment->bytes - offset;
			at = segment->payload + offset;
			way->have = 0;
		} else {
			if (bpf_skb_load_bytes(skb, at, way->head, TLS_RECORD_HEADER))
				return;
			way->next += TLS_RECORD_HEADER;
			left -= TLS_RECORD_HEADER;
			at += TLS_RECORD_HEADER;
		}
		length = way->head[3] << 8 | way->head[4];
		if (way->head[0] < TLS_CHANGE_CIPHER_SPEC || way->head[0] > TLS_DATA || way->head[1] != 3 || !length ||
		    length > TLS_MAX_RECORD) {
			verdict->over = true;
			if (egress || (wait->seen & SEEN_SERVER))
				verdict->lost = true;
			else
				verdict->outcome = SLO_TLS_NOT_TLS;
			return;
		}
		way->next += length;
		if (egress)
			judge_client(skb, wait, way->head[0], length, at, left, verdict);
		else
			judge_server(skb, wait, way->head[0], length, at, left, verdict);
		if (verdict->over)
			return;
	}
}

/* Version, retry and resumption from a ServerHello: RFC 8446 section 4.1.3. What a cut message leaves unknown stays so. */
static __always_inline void read_server_hello(struct __sk_buff *skb, struct tls_wait *wait, __u32 at)
{
	struct {
		__u8 header[4];
		__be16 version;
		__u8 random[32];
		__u8 session_bytes;
	} __attribute__((packed)) hello;
	struct {
		__be16 type;
		__be16 bytes;
	} extension;
	__be16 selected;

	if (bpf_skb_load_bytes(skb, at, &hello, sizeof(hello)) || hello.header[0] != TLS_SERVER_HELLO || hello.session_bytes > 32)
		return;
	wait->version = bpf_ntohs(hello.version);
	/* The random of a HelloRetryRequest is the SHA-256 of its name. */
	if (hello.random[0] == 0xcf && hello.random[1] == 0x21 && hello.random[2] == 0xad && hello.random[3] == 0x74)
		see(wait, SEEN_RETRY | SEEN_TLS_1_3);
	at += sizeof(hello) + hello.session_bytes + 2 + 1 + 2; /* cipher suite, compression, length of the extensions */
	for (int i = 0; i < TLS_MAX_EXTENSIONS; i++) {
		if (bpf_skb_load_bytes(skb, at, &extension, sizeof(extension)))
			return;
		if (extension.type == bpf_htons(TLS_EXT_SUPPORTED_VERSIONS)) {
			if (bpf_skb_load_bytes(skb, at + sizeof(extension), &selected, sizeof(selected)))
				return;
			wait->version = bpf_ntohs(selected);
			if (wait->version == TLS_1_3)
				see(wait, SEEN_TLS_1_3);
		} else if (extension.type == bpf_htons(TLS_EXT_PRE_SHARED_KEY)) {
			see(wait, SEEN_PSK);
		} else if (extension.type == bpf_htons(TLS_CHANGE_CIPHER_SPEC << 8 | 3) ||
			   extension.type == bpf_htons(TLS_HANDSHAKE << 8 | 3) || extension.type == bpf_htons(TLS_DATA << 8 | 3)) {
			return; /* the next record */
		}
		at += sizeof(extension) + bpf_ntohs(extension.bytes);
	}
}

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

static __always_inline bool is_client_hello(const __u8 *head)
{
	__u32 record = head[3] << 8 | head[4], message = head[6] << 16 | head[7] << 8 | head[8];

	return head[0] == TLS_HANDSHAKE && head[1] == 3 && head[2] <= 4 && head[5] == TLS_CLIENT_HELLO && head[9] == 3 && head[10] <= 4 &&
	       record >= TLS_MIN_HELLO - TLS_RECORD_HEADER && record <= TLS_MAX_RECORD &&
	       message >= TLS_MIN_HELLO - TLS_RECORD_HEADER - 4 && message + 4 >= record;
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
	remember_owner(ctx);
	return ALLOW;
}

SEC("cgroup/connect6")
int slo_tls_connect6(struct bpf_sock_addr *ctx)
{
	remember_owner(ctx);
	return ALLOW;
}
