// SPDX-License-Identifier: MIT
/*
 * Time inside the kernel's own reading, writing and syncing functions, which know the file: what it is needs no guess, no other
 * system call pays, and 32-bit programs are seen like the others.
 *
 * A file system that stands on another one (overlay) syncs by way of the same function, within the call: only the outermost
 * is one.
 */
#include "slo_syscall.h"

char LICENSE[] SEC("license") = "GPL";

#define SLO_NO_FD 0xffffffff

static __always_inline __u32 file_type(const struct file *file)
{
	const struct inode *inode = file->f_inode;
	const struct super_block *sb = inode ? inode->i_sb : NULL;

	return sb ? slo_file_type(inode->i_mode, sb->s_magic) : 0;
}

static __always_inline int begins(const struct file *file, __u32 call)
{
	const struct slo_config *config = slo_configuration();

	if (config && file)
		slo_call_begins(config, call, SLO_NO_FD, file_type(file), true);
	return 0;
}

SEC("fentry/vfs_read")
int BPF_PROG(slo_vfs_read, const struct file *file)
{
	slo_hit();

	return begins(file, SLO_CALL_READ);
}

SEC("fexit/vfs_read")
int BPF_PROG(slo_vfs_read_ends, const struct file *file, char *buffer, size_t count, loff_t *position, ssize_t returned)
{
	slo_hit();

	slo_call_ends(slo_configuration(), returned);
	return 0;
}

SEC("fentry/vfs_write")
int BPF_PROG(slo_vfs_write, const struct file *file)
{
	slo_hit();

	return begins(file, SLO_CALL_WRITE);
}

SEC("fexit/vfs_write")
int BPF_PROG(slo_vfs_write_ends, const struct file *file, const char *buffer, size_t count, loff_t *position, ssize_t returned)
{
	slo_hit();

	slo_call_ends(slo_configuration(), returned);
	return 0;
}

SEC("fentry/vfs_readv")
int BPF_PROG(slo_vfs_readv, const struct file *file)
{
	slo_hit();

	return begins(file, SLO_CALL_READV);
}

SEC("fexit/vfs_readv")
int BPF_PROG(slo_vfs_readv_ends, const struct file *file, const struct iovec *vector, unsigned long length, loff_t *position, rwf_t flags,
	     ssize_t returned)
{
	slo_hit();

	slo_call_ends(slo_configuration(), returned);
	return 0;
}

SEC("fentry/vfs_writev")
int BPF_PROG(slo_vfs_writev, const struct file *file)
{
	slo_hit();

	return begins(file, SLO_CALL_WRITEV);
}

SEC("fexit/vfs_writev")
int BPF_PROG(slo_vfs_writev_ends, const struct file *file, const struct iovec *vector, unsigned long length, loff_t *position, rwf_t flags,
	     ssize_t returned)
{
	slo_hit();

	slo_call_ends(slo_configuration(), returned);
	return 0;
}

SEC("fentry/vfs_fsync_range")
int BPF_PROG(slo_vfs_fsync_range, const struct file *file, loff_t start, loff_t end, int datasync)
{
	slo_hit();

	return begins(file, datasync ? SLO_CALL_FDATASYNC : SLO_CALL_FSYNC);
}

SEC("fexit/vfs_fsync_range")
int BPF_PROG(slo_vfs_fsync_range_ends, const struct file *file, loff_t start, loff_t end, int datasync, int returned)
{
	slo_hit();

	slo_call_ends(slo_configuration(), returned);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(slo_process_exit)
{
	slo_hit();

	slo_thread_exits();
	return 0;
}
