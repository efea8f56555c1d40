/* SPDX-License-Identifier: MIT */
/*
 * Time that a task spends freeing memory before it may go on, through the mm_vmscan reclaim tracepoints.
 *
 * Two pairs, and one of them for each wait: direct_reclaim when the machine is short of memory, memcg_reclaim when the
 * task's cgroup is at its limit, which is the only one that a container with room around it ever sees.
 * Begin and end both run in the task that waits, and PF_MEMALLOC keeps a reclaim from starting another within itself.
 *
 * The programs of an object that defines SLO_TRACEPOINT, the kind of tracepoint by its section: "tp_btf/" or "raw_tp/".
 */
#ifndef SLO_RECLAIM_H
#define SLO_RECLAIM_H

#include "slo_core.h"

char LICENSE[] SEC("license") = "GPL";

/*
 * A hash with its memory allocated beforehand, not task storage: this is the moment when an allocation fails.
 * The end fires on every way out of the reclaim, also when the task has been killed, so no entry outlives its wait.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32); /* thread */
	__type(value, __u64);
} reclaim_starts SEC(".maps");

static __always_inline int reclaim_begins(void)
{
	const struct slo_config *config = slo_configuration();
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	__u64 now_ns = bpf_ktime_get_ns();

	if (config && bpf_map_update_elem(&reclaim_starts, &tid, &now_ns, BPF_ANY))
		slo_count_dropped(SLO_MEM_RECLAIM);
	return 0;
}

static __always_inline int reclaim_ends(__u64 pages, __u32 flags)
{
	const struct slo_config *config = slo_configuration();
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct slo_event event = {};
	struct slo_owner owner = {};
	__u64 *found, start_ns;

	if (!config)
		return 0;
	found = bpf_map_lookup_elem(&reclaim_starts, &tid);
	if (!found)
		return 0; /* under way since before this program, or counted as dropped */
	start_ns = *found;
	bpf_map_delete_elem(&reclaim_starts, &tid);
	if (start_ns <= config->since_ns)
		return 0;
	slo_owner_is_current(config, &owner);
	event.ts_ns = owner.seen_ns;
	event.duration_ns = event.ts_ns - start_ns;
	event.kind = SLO_MEM_RECLAIM;
	event.value = pages;
	event.flags = flags;
	slo_event_set_owner(&event, &owner);
	slo_emit(config, &event, owner.passes);
	return 0;
}

SEC(SLO_TRACEPOINT "mm_vmscan_direct_reclaim_begin")
int BPF_PROG(slo_direct_reclaim_begin)
{
	slo_hit();
	return reclaim_begins();
}

SEC(SLO_TRACEPOINT "mm_vmscan_direct_reclaim_end")
int BPF_PROG(slo_direct_reclaim_end, unsigned long nr_reclaimed)
{
	slo_hit();
	return reclaim_ends(nr_reclaimed, 0);
}

SEC(SLO_TRACEPOINT "mm_vmscan_memcg_reclaim_begin")
int BPF_PROG(slo_memcg_reclaim_begin)
{
	slo_hit();
	return reclaim_begins();
}

SEC(SLO_TRACEPOINT "mm_vmscan_memcg_reclaim_end")
int BPF_PROG(slo_memcg_reclaim_end, unsigned long nr_reclaimed)
{
	slo_hit();
	return reclaim_ends(nr_reclaimed, SLO_F_MEMCG);
}

#endif
