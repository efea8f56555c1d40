/* SPDX-License-Identifier: MIT */
/*
 * What all probes share: filters, token buckets, the ring, and the way that each event takes through them.
 */
#ifndef SLO_CORE_H
#define SLO_CORE_H

#include "slo_histogram.h"

#define SLO_BUCKET_TRIES 4

/* Not in BTF: preprocessor constants of the kernel's and the C library's headers. */
#define SLO_AF_INET 2
#define SLO_AF_INET6 10
#define SLO_EEXIST 17
#define SLO_ETIMEDOUT 110
#define SLO_ECONNREFUSED 111
#define SLO_ECANCELED 125
/*
 * Token buckets, each as the one time at which it would be full again (generic cell rate algorithm, ITU-T I.371): one word,
 * so that a compare-and-swap takes a token without a lock, which these programs may not have.
 * LRU: forgetting the least active cgroup gives it a full bucket, which errs on the side of reporting.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct slo_series);
	__type(value, __u64);
} slo_cgroup_buckets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLO_KIND_MAX);
	__type(key, __u32);
	__type(value, __u64);
} slo_signal_buckets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20); /* user space sets its own size before the load */
} slo_events SEC(".maps");

/* Keeps the event's type in the object's BTF, where the layout test reads it. */
const struct slo_event *slo_event_type __attribute__((unused));
/* comm holds SLO_COMM_LEN bytes, zero padded, aligned to 8. */
static __always_inline bool slo_process_passes(const struct slo_config *config, __u32 pid, const char *comm)
{
	if (config->has_comm) {
		const __u64 *wanted = (const __u64 *)config->comm;
		const __u64 *found = (const __u64 *)comm;

		if (wanted[0] != found[0] || wanted[1] != found[1])
			return false;
	}
	if (!config->n_pids)
		return true;
	for (__u32 i = 0; i < SLO_MAX_TARGETS; i++) {
		if (i >= config->n_pids)
			break;
		if (config->pids[i] == pid)
			return true;
	}
	return false;
}

/* A cgroup passes when it is, or lies below, one of those asked for: a pod's cgroup stands for its containers'. */
static __always_inline bool slo_current_cgroup_passes(const struct slo_config *config)
{
	if (!config->n_cgroups)
		return true;
	for (__u32 i = 0; i < SLO_MAX_TARGETS; i++) {
		if (i >= config->n_cgroups)
			break;
		if (bpf_get_current_ancestor_cgroup_id(config->cgroup_levels[i]) == config->cgroup_ids[i])
			return true;
	}
	return false;
}

/* For places without a process: the id itself only. */
static __always_inline bool slo_cgroup_id_passes(const struct slo_config *config, __u64 cgroup_id)
{
	if (!config->n_cgroups)
		return true;
	for (__u32 i = 0; i < SLO_MAX_TARGETS; i++) {
		if (i >= config->n_cgroups)
			break;
		if (config->cgroup_ids[i] == cgroup_id)
			return true;
	}
	return false;
}

/* Who waits, as seen in the context of that process. */
struct slo_owner {
	__u64 seen_ns;
	__u64 cgroup_id;
	__u32 pid;
	__u32 tid;
	char comm[SLO_COMM_LEN];
	__u32 passes; /* the target filters' verdict, taken while the process was at hand */
	__u32 pad;
};

static __always_inline void slo_owner_is_current(const struct slo_config *config, struct slo_owner *owner)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();

	owner->seen_ns = bpf_ktime_get_ns();
	owner->cgroup_id = bpf_get_current_cgroup_id();
	owner->pid = pid_tgid >> 32;
	owner->tid = (__u32)pid_tgid;
	bpf_get_current_comm(owner->comm, sizeof(owner->comm));
	owner->passes = slo_process_passes(config, owner->pid, owner->comm) && slo_current_cgroup_passes(config);
}

static __always_inline void slo_event_set_owner(struct slo_event *event, const struct slo_owner *owner)
{
	event->start_ns = owner->seen_ns;
	event->cgroup_id = owner->cgroup_id;
	event->pid = owner->pid;
	event->tid = owner->tid;
	__builtin_memcpy(event->comm, owner->comm, sizeof(event->comm));
}

/*
 * Take a token. After a few lost races the event passes without one, which errs on the side of reporting;
 * the account stays exact, because each event is counted by what became of it.
 */
static __always_inline bool slo_take_token(__u64 *full_ns, __u64 now_ns, __u64 token_ns, __u64 burst_ns)
{
	for (int i = 0; i < SLO_BUCKET_TRIES; i++) {
		__u64 before = *full_ns, after = (before > now_ns ? before : now_ns) + token_ns;

		if (after - now_ns > burst_ns)
			return false;
		if (__sync_val_compare_and_swap(full_ns, before, after) == before)
			return true;
	}
	return true;
}

/* The cgroup's bucket first: a cgroup that floods has spent its own before it can touch what all share. */
static __always_inline bool slo_rate_passes(const struct slo_config *config, const struct slo_event *event)
{
	struct slo_series series = {.cgroup_id = event->cgroup_id, .kind = event->kind};
	__u64 *full_ns, fresh_ns = event->ts_ns + config->cgroup_token_ns;
	__u32 kind = event->kind;

	if (config->cgroup_token_ns) {
		full_ns = bpf_map_lookup_elem(&slo_cgroup_buckets, &series);
		if (!full_ns)
			bpf_map_update_elem(&slo_cgroup_buckets, &series, &fresh_ns, BPF_ANY);
		else if (!slo_take_token(full_ns, event->ts_ns, config->cgroup_token_ns, config->cgroup_burst_ns))
			return false;
	}
	if (!config->signal_token_ns)
		return true;
	full_ns = bpf_map_lookup_elem(&slo_signal_buckets, &kind);
	return !full_ns || slo_take_token(full_ns, event->ts_ns, config->signal_token_ns, config->signal_burst_ns);
}

/* The rest of the way of an attempt that passes: the rate, and only then the ring. */
static __always_inline void slo_write(const struct slo_config *config, struct slo_account *account, struct slo_event *event)
{
	if (!slo_rate_passes(config, event)) {
		slo_count(account, rate_limited);
		return;
	}
	/*
	 * No wake-up flags: the kernel then wakes the reader only for the first record after it has caught up. The reader
	 * paces itself, so under load it is not woken at all, and on a quiet machine it can name even a process that
	 * ends right after its event.
	 */
	if (bpf_ringbuf_output(&slo_events, event, sizeof(*event), 0))
		slo_count(account, dropped);
	else
		slo_count(account, emitted);
}

/*
 * Decide and write one event; `passes` is the verdict of the target filters. Cheap first: that, the histogram, the
 * threshold. The threshold is for waits that ended well: a failure is news however fast it came, and no wait to compare with.
 */
static __always_inline void slo_emit(const struct slo_config *config, struct slo_event *event, bool passes)
{
	struct slo_account *account = slo_account_of(event->kind);
	__u32 kind = event->kind;

	if (!account || kind >= SLO_KIND_MAX)
		return;
	slo_count(account, attempts);
	if (passes && !event->err && !event->rcode) {
		slo_observe(config, kind, event->cgroup_id, event->duration_ns);
		passes = event->duration_ns >= config->min_latency_ns[kind];
	}
	if (!passes) {
		slo_count(account, filtered);
		return;
	}
	slo_write(config, account, event);
}

/*
 * The verdict on a wait that ended well, of somebody who is asked for, before its event is built: most are short, and these
 * have been counted when this returns false. The event of a long one goes to slo_emit_long().
 */
static __always_inline bool slo_wait_is_long(const struct slo_config *config, __u32 kind, __u64 cgroup_id, __u64 duration_ns)
{
	slo_observe(config, kind, cgroup_id, duration_ns);
	if (duration_ns >= config->min_latency_ns[kind])
		return true;
	slo_count_filtered(kind);
	return false;
}

static __always_inline void slo_emit_long(const struct slo_config *config, struct slo_event *event)
{
	struct slo_account *account = slo_account_of(event->kind);

	if (!account)
		return;
	slo_count(account, attempts);
	slo_write(config, account, event);
}

/* Whether the current task is asked for; its command name is dear, and read only when it decides. */
static __always_inline bool slo_current_passes(const struct slo_config *config)
{
	char comm[SLO_COMM_LEN] __attribute__((aligned(8))) = {};

	if (config->has_comm)
		bpf_get_current_comm(comm, sizeof(comm));
	return slo_process_passes(config, bpf_get_current_pid_tgid() >> 32, comm) && slo_current_cgroup_passes(config);
}

#endif
