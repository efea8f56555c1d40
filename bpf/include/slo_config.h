/* SPDX-License-Identifier: MIT */
/*
 * What every object has: its configuration, the loss account, and the count of its runs.
 *
 * The account closes exactly, per signal: attempts = emitted + filtered + rate_limited + dropped.
 * Its counters are per CPU against contention, and atomic all the same: a program that runs in process context can be
 * interrupted on its CPU by its sibling in softirq, between the load and the store of a plain increment.
 */
#ifndef SLO_CONFIG_H
#define SLO_CONFIG_H

#include "vmlinux.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "slo_event.h"

#define SLO_MAX_TARGETS 16

struct slo_config {
	__u64 min_latency_ns[SLO_KIND_MAX]; /* shorter waits that ended well are filtered, after the histogram has counted them */
	__u64 cgroup_token_ns;		    /* time in which one event's allowance of a cgroup comes back; 0 is no limit */
	__u64 cgroup_burst_ns;		    /* time in which all of it comes back: its depth */
	__u64 signal_token_ns;		    /* likewise, of a signal over all cgroups */
	__u64 signal_burst_ns;
	__u64 since_ns; /* CLOCK_MONOTONIC: a wait that began before is not known in full and is no attempt */
	__u64 cgroup_ids[SLO_MAX_TARGETS];
	__u32 cgroup_levels[SLO_MAX_TARGETS];
	__u32 pids[SLO_MAX_TARGETS];
	__u32 n_cgroups;
	__u32 n_pids;
	__u32 wanted;	  /* bit (1 << kind): signals that this agent reports; 0 mutes the programs */
	__u32 histograms; /* bit (1 << kind): waits that are counted by length */
	__u32 stripe_mask; /* number of stripes of each histogram, less one */
	__u32 has_comm;
	__u32 names; /* what was asked for, such as a DNS question's name, may leave the kernel */
	__u32 pad;
	char comm[SLO_COMM_LEN];
};

struct slo_account {
	__u64 attempts;
	__u64 emitted;
	__u64 filtered;
	__u64 rate_limited;
	__u64 dropped;
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

/* Runs of all programs of the object, for their price. A run that another one interrupts may be left out. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} slo_hits SEC(".maps");

static __always_inline void slo_hit(void)
{
	__u32 zero = 0;
	__u64 *hits = bpf_map_lookup_elem(&slo_hits, &zero);

	if (hits)
		++*hits;
}

/* NULL while the object is muted. */
static __always_inline struct slo_config *slo_configuration(void)
{
	struct slo_config *config;
	__u32 zero = 0;

	config = bpf_map_lookup_elem(&slo_config, &zero);
	return config && config->wanted ? config : NULL;
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

/* An attempt that was refused before it could begin, because its cgroup has too many already. */
static __always_inline void slo_count_rate_limited(__u32 kind)
{
	struct slo_account *account = slo_account_of(kind);

	if (account) {
		slo_count(account, attempts);
		slo_count(account, rate_limited);
	}
}

#endif
