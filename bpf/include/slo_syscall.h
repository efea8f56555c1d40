/* SPDX-License-Identifier: MIT */
/*
 * Time inside read, write and sync calls, through the tracepoints at the entry and the exit of every system call.
 *
 * They run for all calls of all tasks, so the number is looked at first: most calls leave there, before any map is touched.
 * At the exit, the number is in the registers. recvmsg, sendmsg and their like are left out on purpose: what they wait for
 * is the peer.
 *
 * The object defines SLO_SYSCALL_FIRST() and SLO_SYSCALL_NUMBER(), because the registers are read in different ways.
 */
#ifndef SLO_SYSCALL_H
#define SLO_SYSCALL_H

#include "slo_core.h"

#define SLO_EINTR 4
#define SLO_EAGAIN 11
#define SLO_ERESTARTSYS 512 /* include/linux/errno.h: from here to 530 codes that never reach the process */

/*
 * Numbers of each architecture: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h. They are for 64-bit
 * tasks; those with other numbers on the same machine (ia32, x32, 32-bit arm) are told apart by is_compat().
 */
static __always_inline __u32 slo_call_of(unsigned long number)
{
	switch (number) {
#if defined(__TARGET_ARCH_x86)
	case 0: return SLO_CALL_READ;
	case 1: return SLO_CALL_WRITE;
	case 17: return SLO_CALL_PREAD64;
	case 18: return SLO_CALL_PWRITE64;
	case 19: return SLO_CALL_READV;
	case 20: return SLO_CALL_WRITEV;
	case 74: return SLO_CALL_FSYNC;
	case 75: return SLO_CALL_FDATASYNC;
	case 295: return SLO_CALL_PREADV;
	case 296: return SLO_CALL_PWRITEV;
	case 327: return SLO_CALL_PREADV2;
	case 328: return SLO_CALL_PWRITEV2;
#elif defined(__TARGET_ARCH_arm64)
	case 63: return SLO_CALL_READ;
	case 64: return SLO_CALL_WRITE;
	case 65: return SLO_CALL_READV;
	case 66: return SLO_CALL_WRITEV;
	case 67: return SLO_CALL_PREAD64;
	case 68: return SLO_CALL_PWRITE64;
	case 69: return SLO_CALL_PREADV;
	case 70: return SLO_CALL_PWRITEV;
	case 82: return SLO_CALL_FSYNC;
	case 83: return SLO_CALL_FDATASYNC;
	case 286: return SLO_CALL_PREADV2;
	case 287: return SLO_CALL_PWRITEV2;
#else
#error "no table of system call numbers for this architecture"
#endif
	}
	return SLO_CALL_NONE;
}

struct call_start {
	__u64 start_ns;
	__u32 call;
	__u32 fd;
	__u32 file_type; /* i_mode >> 12, 0 is unknown */
	__u32 depth;	 /* calls within this one, of file systems that stand on others */
};

/* An entry goes when its call returns; of a thread that never returns, when it exits. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32); /* thread */
	__type(value, struct call_start);
} call_starts SEC(".maps");

/* An errno, or 0 for what is no failure: nothing there yet, or a signal came. */
static __always_inline __u32 slo_call_error(long returned)
{
	if (returned >= 0 || returned < -4095 || returned <= -SLO_ERESTARTSYS)
		return 0;
	return returned == -SLO_EAGAIN || returned == -SLO_EINTR ? 0 : -returned;
}

/* Whether the current task is asked for; its command name is dear, and read only when it decides. */
static __always_inline bool slo_current_passes(const struct slo_config *config)
{
	char comm[SLO_COMM_LEN] __attribute__((aligned(8))) = {};

	if (config->has_comm)
		bpf_get_current_comm(comm, sizeof(comm));
	return slo_process_passes(config, bpf_get_current_pid_tgid() >> 32, comm) && slo_current_cgroup_passes(config);
}

static __always_inline void slo_call_begins(const struct slo_config *config, __u32 call, __u32 fd, __u32 file_type)
{
	struct call_start start = {.call = call, .fd = fd, .file_type = file_type};
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	if (!slo_current_passes(config)) {
		slo_count_filtered(SLO_SYSCALL_LATENCY);
		return;
	}
	start.start_ns = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&call_starts, &tid, &start, BPF_ANY))
		slo_count_dropped(SLO_SYSCALL_LATENCY);
}

static __always_inline void slo_call_ends(const struct slo_config *config, long returned)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct call_start *found, start;
	struct slo_event event = {};
	struct slo_owner owner = {};

	found = bpf_map_lookup_elem(&call_starts, &tid);
	if (!found)
		return; /* not asked for, under way since before this program, or counted as dropped */
	if (found->depth) {
		found->depth--;
		return;
	}
	start = *found;
	bpf_map_delete_elem(&call_starts, &tid);
	if (!config || start.start_ns <= config->since_ns)
		return;
	slo_owner_is_current(config, &owner);
	slo_event_set_owner(&event, &owner);
	event.ts_ns = owner.seen_ns;
	event.duration_ns = event.ts_ns - start.start_ns;
	event.start_ns = start.start_ns;
	event.kind = SLO_SYSCALL_LATENCY;
	event.value = start.call;
	event.device = start.fd;
	event.tcp_state = start.file_type;
	event.err = slo_call_error(returned);
	slo_emit(config, &event, true);
}

static __always_inline void slo_call_is_over(void)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	bpf_map_delete_elem(&call_starts, &tid);
}

#endif
