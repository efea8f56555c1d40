/* SPDX-License-Identifier: MIT */
/*
 * The one record that every probe writes to its ring buffer.
 *
 * One fixed size for all signals: user space then sees a backlog of any length as one array with a constant stride.
 * libslo/kernel/events.py holds the numpy twin of this struct; a test compares the two through the object's BTF.
 */
#ifndef SLO_EVENT_H
#define SLO_EVENT_H

#define SLO_COMM_LEN 16

enum slo_kind {
	SLO_DNS_LATENCY = 1,
	SLO_CONNECT_LATENCY = 2,
	SLO_CONNECT_ERROR = 3,
	SLO_TCP_RETRANSMIT = 4,
	SLO_MEM_RECLAIM = 5,
	SLO_RUNQUEUE_DELAY = 6,
	SLO_CFS_THROTTLED = 7, /* made in user space, libslo/kernel/polled.py */
	SLO_CPU_STEAL = 8,     /* likewise */
	SLO_DISK_IO = 9,
	SLO_TLS_HANDSHAKE = 10,
	SLO_TLS_FAIL = 11,
	SLO_SYSCALL_LATENCY = 12,
	SLO_KIND_MAX = 16, /* room for further signals without a change of map sizes */
};

enum slo_flag {
	SLO_F_TIMEOUT = 1 << 0,	  /* nobody answered; written by user space, which sweeps old starts */
	SLO_F_TRUNCATED = 1 << 1, /* DNS answer with TC set: the client will ask again over TCP */
	SLO_F_CLOSED = 1 << 2,	  /* the application closed the socket before the peer answered */
	SLO_F_SYNACK = 1 << 3,	  /* the segment retransmitted was a SYN-ACK of a listening socket */
	SLO_F_ACCEPTED = 1 << 4,  /* the owner is that of the listening socket */
	SLO_F_MEMCG = 1 << 5,	  /* reclaim under a cgroup's memory limit, not the machine's */
	SLO_F_PREEMPTED = 1 << 6, /* it was running before the wait, and another task took its place */
	SLO_F_WRITE = 1 << 7,	  /* to the device: write, discard, flush and the like */
};

enum slo_call {
	SLO_CALL_NONE = 0, /* not one that is measured */
	SLO_CALL_READ = 1,
	SLO_CALL_WRITE = 2,
	SLO_CALL_PREAD64 = 3,
	SLO_CALL_PWRITE64 = 4,
	SLO_CALL_READV = 5,
	SLO_CALL_WRITEV = 6,
	SLO_CALL_PREADV = 7,
	SLO_CALL_PWRITEV = 8,
	SLO_CALL_PREADV2 = 9,
	SLO_CALL_PWRITEV2 = 10,
	SLO_CALL_FSYNC = 11,
	SLO_CALL_FDATASYNC = 12,
};

/* A failure whose errno the hook cannot see: MAX_ERRNO, which is no error's number. */
#define SLO_ERR_UNSEEN 4095

struct slo_event {
	__u64 ts_ns;	   /* CLOCK_MONOTONIC at the end of the wait */
	__u64 duration_ns; /* length of the wait, 0 for plain counts */
	__u64 value;	   /* count, for signals that count; cookie of the socket of a DNS wait; pages freed by a reclaim;
			    * nanoseconds of a block request at its device; enum slo_call */
	__u64 cgroup_id;   /* cgroup v2 id of the owner */
	__u32 pid;	   /* the owner's thread group in the initial pid namespace; 0 is unknown */
	__u32 tid;
	char comm[SLO_COMM_LEN];
	__u16 kind;   /* enum slo_kind */
	__u16 family; /* AF_INET, AF_INET6 */
	__u16 sport;  /* host byte order */
	__u16 dport;
	__u8 saddr[16]; /* IPv4 in the first four bytes, network byte order */
	__u8 daddr[16];
	__u32 err;   /* positive errno; 0 is success */
	__u32 netns; /* inode number of the socket's network namespace; 0 where the hook cannot see it */
	__u16 txid;  /* DNS transaction id, host byte order; TLS version */
	__u16 qtype; /* DNS type of the question; how a TLS handshake failed, enum slo_tls_outcome */
	__u16 rcode; /* DNS response code; description of a TLS alert */
	__u8 protocol;
	__u8 flags; /* enum slo_flag; of the TLS kinds enum slo_tls_flag */
	__u32 tcp_state; /* of the socket at the event; of a read or write call, what its file is: i_mode >> 12, 0 is unknown */
	__u32 device;	 /* of a block request: major << 20 | minor, as the kernel's dev_t; of a read or write call: its descriptor */
	__u64 start_ns; /* CLOCK_MONOTONIC when the owner was seen: a process younger than this is not the owner */
};

_Static_assert(sizeof(struct slo_event) == 128, "the ring's record size is part of the contract with user space");

#endif
