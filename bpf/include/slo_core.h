/* SPDX-License-Identifier: MIT */
/*
 * What all probes share: configuration, filters, rate limit, the loss account, the ring.
 *
 * The account closes exactly, per signal: attempts = emitted + filtered + rate_limited + dropped.
 * Its counters are per CPU against contention, and atomic all the same: a program that runs in process context can be
 * interrupted on its CPU by its sibling in softirq, between the load and the store of a plain increment.
 */
#ifndef SLO_CORE_H
#define SLO_CORE_H

#include "vmlinux.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "slo_event.h"

#define SLO_MAX_TARGETS 16
#define SLO_NSEC_PER_SEC 1000000000ULL

/* Not in BTF: preprocessor constants of the kernel's and the C library's headers. */
#define SLO_AF_INET 2
#define SLO_AF_INET6 10
#define SLO_EEXIST 17
#define SLO_ECANCELED 125

struct slo_config {
	__u64 min_latency_ns; /* shorter successful waits are filtered; failures always pass */
	__u64 rate_limit;     /* events per second, signal and cgroup; 0 is off */
	__u64 cgroup_ids[SLO_MAX_TARGETS];
	__u32 cgroup_levels[SLO_MAX_TARGETS];
	__u32 pids[SLO_MAX_TARGETS];
	__u32 n_cgroups;
	__u32 n_pids;
	__u32 wanted; /* bit (1 << kind): signals that this agent reports */
	__u32 has_comm;
	char comm[SLO_COMM_LEN];
};

struct slo_account {
	__u64 attempts;
	__u64 emitted;
	__u64 filtered;
	__u64 rate_limited;
	__u64 dropped;
};

struct slo_rate_key {
	__u64 cgroup_id;
	__u64 kind;
};

struct slo_rate {
	__u64 second;
	__u64 events;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct slo_config);
} slo_config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLO_KIND_MAX);
	__type(key, __u32);
	__type(value, struct slo_account);
} slo_accounts SEC(".maps");

/* LRU: forgetting the least active cgroup gives it a fresh allowance, which errs on the side of reporting. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct slo_rate_key);
	__type(value, struct slo_rate);
} slo_rates SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20); /* user space sets its own size before the load */
} slo_events SEC(".maps");

/* Keeps the event's type in the object's BTF, where the layout test reads it. */
const struct slo_event *slo_event_type __attribute__((unused));

static __always_inline struct slo_config *slo_configuration(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&slo_config, &zero);
}

static __always_inline bool slo_wanted(const struct slo_config *config, __u32 kind)
{
	return config->wanted & (1U << kind);
}

static __always_inline struct slo_account *slo_account_of(__u32 kind)
{
	return bpf_map_lookup_elem(&slo_accounts, &kind);
}

#define slo_count(account, counter) __sync_fetch_and_add(&(account)->counter, 1)

/* An event that got lost before it could be built, such as a start that found its map full. */
static __always_inline void slo_count_dropped(__u32 kind)
{
	struct slo_account *account = slo_account_of(kind);

	if (account) {
		slo_count(account, attempts);
		slo_count(account, dropped);
	}
}

static __always_inline void slo_count_filtered(__u32 kind)
{
	struct slo_account *account = slo_account_of(kind);

	if (account) {
		slo_count(account, attempts);
		slo_count(account, filtered);
	}
}

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
 * One window a second. Two CPUs that open a window together may let a few more events through;
 * the account stays exact, because each event is counted by what became of it.
 */
static __always_inline bool slo_rate_passes(const struct slo_config *config, const struct slo_event *event)
{
	struct slo_rate_key key = {.cgroup_id = event->cgroup_id, .kind = event->kind};
	__u64 second = event->ts_ns / SLO_NSEC_PER_SEC;
	struct slo_rate fresh = {.second = second, .events = 1};
	struct slo_rate *rate;

	if (!config->rate_limit)
		return true;
	rate = bpf_map_lookup_elem(&slo_rates, &key);
	if (!rate) {
		bpf_map_update_elem(&slo_rates, &key, &fresh, BPF_ANY);
		return true;
	}
	if (rate->second != second) {
		rate->second = second;
		rate->events = 0;
	}
	return __sync_fetch_and_add(&rate->events, 1) < config->rate_limit;
}

/* The threshold is for waits that ended well: a failure is news however fast it came. */
static __always_inline bool slo_wait_passes(const struct slo_config *config, const struct slo_event *event)
{
	return event->err || event->rcode || event->duration_ns >= config->min_latency_ns;
}

/*
 * Decide and write one event; `passes` is the verdict of the target filters and the threshold.
 * Cheap first: those, then the rate, and only then the ring.
 */
static __always_inline void slo_emit(const struct slo_config *config, struct slo_event *event, bool passes)
{
	struct slo_account *account = slo_account_of(event->kind);

	if (!account)
		return;
	slo_count(account, attempts);
	if (!passes) {
		slo_count(account, filtered);
		return;
	}
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

#endif
