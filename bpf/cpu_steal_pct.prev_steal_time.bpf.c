// SPDX-License-Identifier: MIT
/*
 * The stolen time of a CPU as the scheduler has accounted it, read out of its run queue when user space runs this program on that
 * CPU: /proc/stat, which has the same number, may be that of a container (lxcfs).
 *
 * Not kernel_cpustat, from which /proc/stat is made: a kernel without CONFIG_KALLSYMS_ALL does not tell the address of a variable.
 */
#include "vmlinux.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

/* Nanoseconds since boot, by CPU. User space sets the size before the load. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} stolen_ns SEC(".maps");

SEC("raw_tp")
int slo_stolen(void *ctx)
{
	__u64 *place;
	const struct task_struct *task = bpf_get_current_task_btf();
	const struct cfs_rq *cfs_rq = task->se.cfs_rq;
	const struct rq *rq = cfs_rq ? cfs_rq->rq : NULL;
	__u32 cpu = bpf_get_smp_processor_id();

	place = bpf_map_lookup_elem(&stolen_ns, &cpu);
	if (!place || !rq)
		return 1;
	*place = rq->prev_steal_time;
	return 0;
}
