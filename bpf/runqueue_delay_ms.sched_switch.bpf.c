// SPDX-License-Identifier: MIT
/*
 * Time from runnable to running, through the scheduler's wake-up and switch tracepoints.
 *
 * A task is runnable from its wake-up, or from the switch that took the CPU from it, to the switch that gives it one.
 * These run at every switch of the machine, so a task that is not asked for is let go before any map of starts is touched.
 * Contention only: a wait in which the CPU quota of the task's group held it is filtered, not reported.
 *
 * sched_switch has its four arguments in this order since 5.19 (9c2136be0878); on older kernels the verifier refuses this program.
 */
#include "slo_task.h"

char LICENSE[] SEC("license") = "GPL";

#define SLO_TASK_DEAD 0x80 /* include/linux/sched.h, TASK_DEAD */

struct runnable {
	__u64 start_ns;
	__u64 cfs_rq;	    /* the queue it was put on; an address to compare, nothing more */
	__u64 throttled_ns; /* how long that queue had been throttled until then */
	__u32 flags;
	__u32 held; /* it lost the CPU to the quota of its group, or of one above it */
};

/*
 * A hash with its memory allocated beforehand, not task storage: these programs run under the run queue's lock, and an
 * allocation there may want to wake kswapd. An entry goes when its task gets the CPU, and at the latest when it exits.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32); /* thread */
	__type(value, struct runnable);
} runnables SEC(".maps");

/* Grows with every end of a throttling of this queue or of one above it (tg_unthrottle_up()); 0 without CPU quotas in this kernel. */
static __always_inline __u64 throttled_ns_of(const struct cfs_rq *cfs_rq)
{
	if (!cfs_rq || !bpf_core_field_exists(cfs_rq->throttled_clock_pelt_time))
		return 0;
	return cfs_rq->throttled_clock_pelt_time;
}

static __always_inline bool is_throttled(const struct cfs_rq *cfs_rq)
{
	return cfs_rq && bpf_core_field_exists(cfs_rq->throttle_count) && cfs_rq->throttle_count > 0;
}

static __always_inline const struct cfs_rq *cfs_rq_of(const struct task_struct *task)
{
	return bpf_core_field_exists(task->se.cfs_rq) ? task->se.cfs_rq : NULL;
}

static __always_inline void becomes_runnable(const struct slo_config *config, const struct task_struct *task, __u32 flags)
{
	const struct cfs_rq *cfs_rq;
	struct runnable runnable = {};
	__u32 tid = task->pid;

	if (!tid || !slo_task_passes(config, task))
		return;
	cfs_rq = cfs_rq_of(task);
	runnable.start_ns = bpf_ktime_get_ns();
	runnable.cfs_rq = (__u64)cfs_rq;
	runnable.throttled_ns = throttled_ns_of(cfs_rq);
	runnable.flags = flags;
	runnable.held = is_throttled(cfs_rq);
	if (bpf_map_update_elem(&runnables, &tid, &runnable, BPF_ANY))
		slo_count_dropped(SLO_RUNQUEUE_DELAY);
}

static __always_inline void gets_cpu(const struct slo_config *config, const struct task_struct *task)
{
	const struct cfs_rq *cfs_rq = cfs_rq_of(task);
	struct slo_event event = {};
	struct runnable *found, runnable;
	__u32 tid = task->pid;
	bool passes;

	if (!tid)
		return;
	if (!slo_task_passes(config, task)) {
		slo_count_filtered(SLO_RUNQUEUE_DELAY);
		return;
	}
	found = bpf_map_lookup_elem(&runnables, &tid);
	if (!found)
		return; /* runnable since before this program, or counted as dropped */
	runnable = *found;
	bpf_map_delete_elem(&runnables, &tid);
	if (runnable.start_ns <= config->since_ns)
		return;
	event.ts_ns = bpf_ktime_get_ns();
	/* Two CPUs' readings of the clock: the later event may carry the earlier time. */
	if (event.ts_ns > runnable.start_ns)
		event.duration_ns = event.ts_ns - runnable.start_ns;
	/* The throttling that was on when the wait began, or one that ended during it. */
	passes = !runnable.held && (runnable.cfs_rq != (__u64)cfs_rq || runnable.throttled_ns == throttled_ns_of(cfs_rq));
	event.kind = SLO_RUNQUEUE_DELAY;
	event.value = 1;
	event.flags = runnable.flags;
	event.start_ns = runnable.start_ns;
	event.pid = task->tgid;
	event.tid = tid;
	event.cgroup_id = slo_task_cgroup_id(task);
	if (event.duration_ns >= config->min_latency_ns[SLO_RUNQUEUE_DELAY])
		slo_task_comm(task, event.comm); /* dear, and most switches are below the threshold */
	slo_emit(config, &event, passes);
}

/* A task that is still on its CPU has only been told not to go to sleep; it does not wait. */
SEC("tp_btf/sched_wakeup")
int BPF_PROG(slo_sched_wakeup, const struct task_struct *task)
{
	const struct slo_config *config = slo_configuration();

	if (config && task && !task->on_cpu)
		becomes_runnable(config, task, 0);
	return 0;
}

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(slo_sched_wakeup_new, const struct task_struct *task)
{
	const struct slo_config *config = slo_configuration();

	if (config && task)
		becomes_runnable(config, task, 0);
	return 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(slo_sched_switch, bool preempt, const struct task_struct *prev, const struct task_struct *next, unsigned int prev_state)
{
	const struct slo_config *config = slo_configuration();

	if (!config || !prev || !next)
		return 0;
	if (preempt || !prev_state) {
		becomes_runnable(config, prev, SLO_F_PREEMPTED);
	} else if (prev_state & SLO_TASK_DEAD) {
		__u32 tid = prev->pid; /* renamed or moved to another cgroup while it waited: nobody else would free the entry */

		bpf_map_delete_elem(&runnables, &tid);
	}
	gets_cpu(config, next);
	return 0;
}
