/* SPDX-License-Identifier: MIT */
/*
 * TLS records in a TCP stream, followed segment by segment: what has been seen of a handshake, and when it is over.
 * For programs that have the packet as a struct __sk_buff.
 */
#ifndef SLO_TLS_RECORDS_H
#define SLO_TLS_RECORDS_H

#include "slo_core.h"
#include "slo_tls.h"

#define TLS_RECORD_HEADER 5
#define TLS_HELLO_HEAD 11 /* record header, handshake header, version */
#define TLS_MIN_HELLO 50  /* record header, handshake header, version, random, and the lengths of what may be empty */
#define TLS_MIN_PACKET (20 + 20 + TLS_MIN_HELLO)
#define TLS_MAX_RECORD (16384 + 2048) /* RFC 5246 section 6.2.3 */
#define TLS_MAX_RECORDS 16		 /* of one packet; more are followed from their retransmission or not at all */
#define TLS_MAX_EXTENSIONS 8
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

/* Whether an alert ends the handshake, and its description; `left` bytes of the record are in this segment. */
static __always_inline void judge_alert(struct __sk_buff *skb, const struct tls_wait *wait, __u32 at, __s32 left, __u32 length,
					struct verdict *verdict)
{
	__u8 alert[2];

	if (length != sizeof(alert) || left < (__s32)sizeof(alert) || bpf_skb_load_bytes(skb, at, alert, sizeof(alert))) {
		verdict->hidden = true;
	} else {
		/* TLS 1.3 has no levels; before it a warning lets the handshake go on. */
		if (alert[0] == TLS_WARNING && alert[1] != TLS_CLOSE_NOTIFY &&
		    (alert[1] == TLS_USER_CANCELED || !(wait->seen & SEEN_TLS_1_3)))
			return;
		verdict->alert = alert[1];
	}
	verdict->outcome = SLO_TLS_ALERT;
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

static __always_inline bool is_client_hello(const __u8 *head)
{
	__u32 record = head[3] << 8 | head[4], message = head[6] << 16 | head[7] << 8 | head[8];

	return head[0] == TLS_HANDSHAKE && head[1] == 3 && head[2] <= 4 && head[5] == TLS_CLIENT_HELLO && head[9] == 3 && head[10] <= 4 &&
	       record >= TLS_MIN_HELLO - TLS_RECORD_HEADER && record <= TLS_MAX_RECORD &&
	       message >= TLS_MIN_HELLO - TLS_RECORD_HEADER - 4 && message + 4 >= record;
}

#endif
