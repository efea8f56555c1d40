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
	__u64 start_ns;	    /* 0: has its CPU, or sleeps */
	__u64 cfs_rq;	    /* the queue it was put on; an address to compare, nothing more */
	__u64 throttled_ns; /* how long that queue had been throttled until then */
	__u16 flags;
	__u16 held;	/* it lost the CPU to the quota of its group, or of one above it */
	__u32 switches; /* how often the task had left a CPU by then */
};

/*
 * A hash with its memory allocated beforehand, not task storage: these programs run under the run queue's lock, and an
 * allocation there may want to wake kswapd. An entry lives as long as its thread: cheaper than one for each wait.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
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

/* Counted before sched_switch is traced (__schedule()), so the same number again means that the task has not run since. */
static __always_inline __u32 switches_of(const struct task_struct *task)
{
	return task->nvcsw + task->nivcsw;
}

/*
 * A task may lose its CPU on the way to sleep, between saying so and leaving it (ttwu_runnable()): then it is still on the run
 * queue when it is woken, and has waited since it lost the CPU.
 */
static __always_inline void becomes_runnable(const struct slo_config *config, const struct task_struct *task, __u16 flags)
{
	struct runnable runnable = {}, *known;
	const struct cfs_rq *cfs_rq;
	__u32 tid = task->pid;

	if (!tid || !slo_task_passes(config, task))
		return;
	known = bpf_map_lookup_elem(&runnables, &tid);
	runnable.switches = switches_of(task);
	if (known && known->start_ns > config->since_ns && known->switches == runnable.switches)
		return;
	cfs_rq = cfs_rq_of(task);
	runnable.start_ns = bpf_ktime_get_ns();
	runnable.cfs_rq = (__u64)cfs_rq;
	runnable.throttled_ns = throttled_ns_of(cfs_rq);
	runnable.flags = flags;
	runnable.held = is_throttled(cfs_rq);
	if (known)
		*known = runnable;
	else if (bpf_map_update_elem(&runnables, &tid, &runnable, BPF_ANY))
		slo_count_dropped(SLO_RUNQUEUE_DELAY);
}

static __always_inline void gets_cpu(const struct slo_config *config, const struct task_struct *task)
{
	struct slo_event event = {.kind = SLO_RUNQUEUE_DELAY, .value = 1};
	const struct cfs_rq *cfs_rq = cfs_rq_of(task);
	struct runnable *runnable;
	__u32 tid = task->pid;

	if (!tid)
		return;
	if (!slo_task_passes(config, task)) {
		slo_count_filtered(SLO_RUNQUEUE_DELAY);
		return;
	}
	runnable = bpf_map_lookup_elem(&runnables, &tid);
	if (!runnable || !runnable->start_ns)
		return; /* runnable since before this program, or counted as dropped */
	event.start_ns = runnable->start_ns;
	runnable->start_ns = 0;
	if (event.start_ns <= config->since_ns)
		return;
	/* The throttling that was on when the wait began, or one that ended during it. */
	if (runnable->held || (runnable->cfs_rq == (__u64)cfs_rq && runnable->throttled_ns != throttled_ns_of(cfs_rq))) {
		slo_count_filtered(SLO_RUNQUEUE_DELAY);
		return;
	}
	event.ts_ns = bpf_ktime_get_ns();
	/* Two CPUs' readings of the clock: the later event may carry the earlier time. */
	if (event.ts_ns > event.start_ns)
		event.duration_ns = event.ts_ns - event.start_ns;
	event.cgroup_id = slo_task_cgroup_id(task);
	if (!slo_wait_is_long(config, SLO_RUNQUEUE_DELAY, event.cgroup_id, event.duration_ns))
		return;
	event.flags = runnable->flags;
	event.pid = task->tgid;
	event.tid = tid;
	slo_task_comm(task, event.comm);
	slo_emit_long(config, &event);
}

/*
 * A task that is still on its CPU has only been told not to go to sleep; it does not wait. One that lost its CPU on the way to sleep
 * (ttwu_runnable()) has been in nobody's way until now: its wait begins again. schedstat leaves such a wait out altogether.
 */
SEC("tp_btf/sched_wakeup")
int BPF_PROG(slo_sched_wakeup, const struct task_struct *task)
{
	slo_hit();

	const struct slo_config *config = slo_configuration();

	if (config && task && !task->on_cpu)
		becomes_runnable(config, task, 0);
	return 0;
}

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(slo_sched_wakeup_new, const struct task_struct *task)
{
	slo_hit();

	const struct slo_config *config = slo_configuration();

	if (config && task)
		becomes_runnable(config, task, 0);
	return 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(slo_sched_switch, bool preempt, const struct task_struct *prev, const struct task_struct *next, unsigned int prev_state)
{
	slo_hit();

	const struct slo_config *config = slo_configuration();

	if (!prev || !next)
		return 0;
	if (prev_state & SLO_TASK_DEAD) {
		__u32 tid = prev->pid;

		bpf_map_delete_elem(&runnables, &tid);
	}
	if (!config)
		return 0;
	if (preempt || !prev_state)
		becomes_runnable(config, prev, SLO_F_PREEMPTED);
	gets_cpu(config, next);
	return 0;
}
