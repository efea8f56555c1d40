// SPDX-License-Identifier: MIT
/*
 * Time from runnable to running, through the scheduler's classic tracepoints: no types of the running kernel are needed.
 *
 * Their records name a thread, and nothing tells its process or cgroup before it is `current`. So the wait is remembered when
 * the thread gets a CPU, and reported when it next leaves it, as of the moment it got it. All threads of the machine are
 * remembered, because at a wake-up nobody can say whether the woken one is asked for.
 *
 * The offsets are those of the tracepoints' format files; contracts/vocabulary/variants.json has them too, and the loader
 * compares them with the running kernel's before it attaches.
 */
#define BPF_NO_PRESERVE_ACCESS_INDEX
#include "slo_core.h"

char LICENSE[] SEC("license") = "GPL";

/* include/trace/events/sched.h, __trace_sched_switch_state(): the state to report, with one bit above all for a preempted task. */
#define SLO_STATE_EXITED 0x30 /* EXIT_DEAD, EXIT_ZOMBIE */
#define SLO_STATE_PREEMPTED 0x100
#define SLO_STATE_SLEEPS 0xff

struct sched_wakeup_record {
	__u64 common;
	char comm[SLO_COMM_LEN];
	__s32 pid;
	__s32 prio;
	__s32 target_cpu;
};

struct sched_switch_record {
	__u64 common;
	char prev_comm[SLO_COMM_LEN];
	__s32 prev_pid;
	__s32 prev_prio;
	__s64 prev_state;
	char next_comm[SLO_COMM_LEN];
	__s32 next_pid;
	__s32 next_prio;
};

struct thread {
	__u64 start_ns; /* runnable since; 0 is not, or unknown */
	__u64 got_ns;	/* got the CPU that it has; 0 has none, or unknown */
	__u32 flags;
	__u32 pad;
};

/* Allocated beforehand: this runs under the run queue's lock. An entry lives as long as its thread. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, __u32); /* thread */
	__type(value, struct thread);
} threads SEC(".maps");

static __always_inline void remember(__u32 tid, __u32 flags)
{
	struct thread thread = {.start_ns = bpf_ktime_get_ns(), .flags = flags};

	if (bpf_map_update_elem(&threads, &tid, &thread, BPF_ANY))
		slo_count_dropped(SLO_RUNQUEUE_DELAY);
}

/* In the context of the thread that had the CPU, which is still current. */
static __always_inline void report(const struct slo_config *config, const struct thread *thread)
{
	struct slo_event event = {.kind = SLO_RUNQUEUE_DELAY, .value = 1};
	struct slo_owner owner = {};

	if (!thread->start_ns || thread->start_ns <= config->since_ns)
		return;
	if (!thread->got_ns)
		return; /* woken while it had a CPU since before this program: no wait */
	if (!slo_current_passes(config)) {
		slo_count_filtered(SLO_RUNQUEUE_DELAY);
		return;
	}
	/* Two CPUs' readings of the clock: the later event may carry the earlier time. */
	if (thread->got_ns > thread->start_ns)
		event.duration_ns = thread->got_ns - thread->start_ns;
	if (!slo_wait_is_long(config, SLO_RUNQUEUE_DELAY, bpf_get_current_cgroup_id(), event.duration_ns))
		return;
	slo_owner_is_current(config, &owner);
	slo_event_set_owner(&event, &owner);
	event.ts_ns = thread->got_ns;
	event.flags = thread->flags;
	event.start_ns = thread->start_ns;
	slo_emit_long(config, &event);
}

static __always_inline void leaves_cpu(const struct slo_config *config, __u32 tid, __s64 state)
{
	bool runnable = !(state & SLO_STATE_SLEEPS);
	struct thread *thread = bpf_map_lookup_elem(&threads, &tid);

	if (!thread) {
		if (runnable)
			remember(tid, SLO_F_PREEMPTED);
		return;
	}
	report(config, thread);
	thread->got_ns = 0;
	thread->start_ns = runnable ? bpf_ktime_get_ns() : 0;
	thread->flags = SLO_F_PREEMPTED;
}

SEC("tracepoint/sched/sched_wakeup")
int slo_sched_wakeup(struct sched_wakeup_record *record)
{
	slo_hit();

	const struct slo_config *config = slo_configuration();
	__u32 tid = record->pid;
	struct thread *thread;

	if (!config || !tid)
		return 0;
	thread = bpf_map_lookup_elem(&threads, &tid);
	if (!thread) {
		remember(tid, 0);
		return 0;
	}
	if (thread->got_ns > config->since_ns)
		return 0; /* still on its CPU: it has only been told not to go to sleep */
	if (thread->start_ns > config->since_ns)
		return 0; /* it waits already, and has been told the same */
	thread->got_ns = 0;
	thread->start_ns = bpf_ktime_get_ns();
	thread->flags = 0;
	return 0;
}

SEC("tracepoint/sched/sched_wakeup_new")
int slo_sched_wakeup_new(struct sched_wakeup_record *record)
{
	slo_hit();

	if (slo_configuration())
		remember(record->pid, 0);
	return 0;
}

SEC("tracepoint/sched/sched_switch")
int slo_sched_switch(struct sched_switch_record *record)
{
	slo_hit();

	const struct slo_config *config = slo_configuration();
	__u32 prev = record->prev_pid, next = record->next_pid;
	struct thread *thread;

	if (config && prev)
		leaves_cpu(config, prev, record->prev_state);
	if (record->prev_state & SLO_STATE_EXITED)
		bpf_map_delete_elem(&threads, &prev);
	if (!config || !next)
		return 0;
	thread = bpf_map_lookup_elem(&threads, &next);
	if (thread)
		thread->got_ns = bpf_ktime_get_ns();
	return 0;
}
