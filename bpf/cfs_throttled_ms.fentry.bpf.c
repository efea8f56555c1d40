// SPDX-License-Identifier: MIT
/*
 * Time that a CPU quota holds a cgroup's queue on one CPU, through the scheduler's own functions: one event for each time that
 * it is held, with the process whose run used the quota up.
 *
 * throttle_cfs_rq() says whether it really held the queue. It is mostly called in the context of the task that has run, but also in
 * that of somebody who put a task of the group on a queue when the quota was used up already: then no process is named.
 * unthrottle_cfs_rq() is called by a timer, or by whoever changed the quota. Between the two lies what cpu.stat adds up.
 */
#include "slo_core.h"

char LICENSE[] SEC("license") = "GPL";

#define SLO_MAX_CGROUP_LEVELS 16

struct held {
	struct slo_owner owner;
	__u64 cgroup_id; /* of the queue's group */
};

/* By the queue's address: one a (cgroup, CPU). What a group takes with it when it is removed while held, its successor overwrites. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct held);
} held_queues SEC(".maps");

static __always_inline bool current_runs_below(const struct task_group *held)
{
	const struct task_group *group = bpf_get_current_task_btf()->sched_task_group;

	for (int i = 0; i < SLO_MAX_CGROUP_LEVELS && group; i++) {
		if ((__u64)group == (__u64)held)
			return true;
		group = group->parent;
	}
	return false;
}

SEC("fexit/throttle_cfs_rq")
int BPF_PROG(slo_throttle_cfs_rq, const struct cfs_rq *cfs_rq, bool is_held)
{
	slo_hit();

	const struct slo_config *config = slo_configuration();
	__u64 key = (__u64)cfs_rq;
	struct held held = {};

	if (!config || !is_held)
		return 0;
	held.cgroup_id = cfs_rq->tg->css.cgroup->kn->id;
	if (current_runs_below(cfs_rq->tg)) {
		slo_owner_is_current(config, &held.owner);
	} else {
		held.owner.seen_ns = bpf_ktime_get_ns();
		held.owner.passes = !config->n_pids && !config->has_comm && slo_cgroup_id_passes(config, held.cgroup_id);
	}
	if (bpf_map_update_elem(&held_queues, &key, &held, BPF_ANY))
		slo_count_dropped(SLO_CFS_THROTTLED);
	return 0;
}

SEC("fentry/unthrottle_cfs_rq")
int BPF_PROG(slo_unthrottle_cfs_rq, const struct cfs_rq *cfs_rq)
{
	slo_hit();

	const struct slo_config *config = slo_configuration();
	struct held *found = NULL, held;
	struct slo_event event = {};
	__u64 key = (__u64)cfs_rq;

	found = bpf_map_lookup_elem(&held_queues, &key);
	if (!found)
		return 0; /* held since before this program, or counted as dropped */
	held = *found;
	bpf_map_delete_elem(&held_queues, &key);
	if (!config || held.owner.seen_ns <= config->since_ns)
		return 0;
	slo_event_set_owner(&event, &held.owner);
	event.ts_ns = bpf_ktime_get_ns();
	event.duration_ns = event.ts_ns > held.owner.seen_ns ? event.ts_ns - held.owner.seen_ns : 0;
	event.kind = SLO_CFS_THROTTLED;
	event.value = 1;
	event.cgroup_id = held.cgroup_id;
	slo_emit(config, &event, held.owner.passes);
	return 0;
}
