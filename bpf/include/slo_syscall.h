/* SPDX-License-Identifier: MIT */
/*
 * Time inside read, write and sync calls: what the programs have in common that learn of them in different ways.
 *
 * The tracepoints are those of all calls of all tasks, so the number is looked at first: most calls leave there, before any map
 * is touched.
 * recvmsg, sendmsg and their like are left out on purpose: what they wait for
 * is the peer.
 */
#ifndef SLO_SYSCALL_H
#define SLO_SYSCALL_H

#include "slo_core.h"

#define SLO_EINTR 4
#define SLO_EAGAIN 11
#define SLO_ERESTARTSYS 512 /* include/linux/errno.h: from here to 530 codes that never reach the process */
#define SLO_ANON_INODE_MAGIC 0x09041934 /* include/uapi/linux/magic.h: eventfd, timerfd, inotify and their like */

/*
 * Numbers of each architecture: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h. They are for 64-bit
 * tasks; those with other numbers on the same machine (ia32, 32-bit arm) are left out by what the registers say, x32 by its numbers.
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
	__u64 start_ns; /* 0: in no call that is measured */
	__u32 call;
	__u32 fd;
	__u32 file_type; /* i_mode >> 12, 0 is unknown */
	__u32 depth;	 /* calls within this one, of file systems that stand on others */
};

/* One entry for each thread that is asked for and has made such a call, until it exits: cheaper than one for each call. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, __u32); /* thread */
	__type(value, struct call_start);
} call_starts SEC(".maps");

/* The agent itself, whose writing down of an event would be the next one. User space sets it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} own_process SEC(".maps");

static __always_inline bool slo_current_is_own(void)
{
	__u32 zero = 0, *own = bpf_map_lookup_elem(&own_process, &zero);

	return own && *own == bpf_get_current_pid_tgid() >> 32;
}

/* As struct call_start has it. Anonymous inodes say that they are regular files, since 6.16. */
static __always_inline __u32 slo_file_type(__u32 mode, __u64 magic)
{
	return magic == SLO_ANON_INODE_MAGIC ? 0 : mode >> 12;
}

#ifdef SLO_SEES_FILES
/*
 * What a descriptor of the current task stands for. The table is an array of pointers, which the verifier does not follow, so
 * this reads by address; for long waits only. User space could look too, but not at other people's processes once the agent
 * has dropped its capabilities.
 */
static __always_inline __u32 slo_current_file_type(__u32 fd)
{
	const struct files_struct *files = bpf_get_current_task_btf()->files;
	const struct fdtable *table = files ? files->fdt : NULL;
	const struct super_block *sb;
	const struct inode *inode;
	struct file *file = NULL;

	if (!table || fd >= table->max_fds)
		return 0;
	if (bpf_probe_read_kernel(&file, sizeof(file), table->fd + fd) || !file)
		return 0;
	inode = BPF_CORE_READ(file, f_inode);
	sb = BPF_CORE_READ(inode, i_sb);
	return sb ? slo_file_type(BPF_CORE_READ(inode, i_mode), BPF_CORE_READ(sb, s_magic)) : 0;
}
#endif

/* An errno, or 0 for what is no failure: nothing there yet, or a signal came. */
static __always_inline __u32 slo_call_error(long returned)
{
	if (returned >= 0 || returned <= -SLO_ERESTARTSYS)
		return 0;
	return returned == -SLO_EAGAIN || returned == -SLO_EINTR ? 0 : -returned;
}

static __always_inline void slo_call_begins(const struct slo_config *config, __u32 call, __u32 fd, __u32 file_type, bool nests)
{
	struct call_start fresh = {.call = call, .fd = fd, .file_type = file_type}, *start;
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	if (slo_current_is_own())
		return;
	if (!slo_current_passes(config)) {
		slo_count_filtered(SLO_SYSCALL_LATENCY);
		return;
	}
	start = bpf_map_lookup_elem(&call_starts, &tid);
	if (nests && start && start->start_ns > config->since_ns) {
		start->depth++;
		return;
	}
	fresh.start_ns = bpf_ktime_get_ns();
	if (start)
		*start = fresh;
	else if (bpf_map_update_elem(&call_starts, &tid, &fresh, BPF_ANY))
		slo_count_dropped(SLO_SYSCALL_LATENCY);
}

static __always_inline void slo_call_ends(const struct slo_config *config, long returned)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct call_start *start;
	struct slo_event event = {};
	struct slo_owner owner = {};
	__u64 start_ns;

	start = bpf_map_lookup_elem(&call_starts, &tid);
	if (!start || !start->start_ns)
		return; /* another call, not asked for, under way since before this program, or counted as dropped */
	if (start->depth) {
		start->depth--;
		return;
	}
	start_ns = start->start_ns;
	start->start_ns = 0;
	if (!config || start_ns <= config->since_ns)
		return;
	event.err = slo_call_error(returned);
	event.ts_ns = bpf_ktime_get_ns();
	event.duration_ns = event.ts_ns - start_ns;
	event.kind = SLO_SYSCALL_LATENCY;
	if (!event.err && !slo_wait_is_long(config, event.kind, bpf_get_current_cgroup_id(), event.duration_ns))
		return;
	slo_owner_is_current(config, &owner);
	slo_event_set_owner(&event, &owner);
	event.start_ns = start_ns;
	event.value = start->call;
	event.device = start->fd;
#ifdef SLO_SEES_FILES
	event.tcp_state = slo_current_file_type(start->fd);
#else
	event.tcp_state = start->file_type;
#endif
	slo_emit_long(config, &event);
}

static __always_inline void slo_thread_exits(void)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	bpf_map_delete_elem(&call_starts, &tid);
}

#endif
