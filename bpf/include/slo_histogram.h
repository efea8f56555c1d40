/* SPDX-License-Identifier: MIT */
/* Waits by length, for each signal and cgroup. */
#ifndef SLO_HISTOGRAM_H
#define SLO_HISTOGRAM_H

#include "slo_config.h"

#define SLO_MAX_SERIES 512
#define SLO_HIST_STEPS 4
#define SLO_HIST_BUCKETS 125 /* up to 2^32 microseconds, and one for what is longer */

/* One cgroup's part of one signal. */
struct slo_series {
	__u64 cgroup_id;
	__u64 kind;
};

/*
 * Waits by length: SLO_HIST_STEPS buckets for each power of two of microseconds, the last one for what is longer.
 * libslo/kernel/histogram.py knows their bounds.
 */
struct slo_histogram {
	__u64 counts[SLO_HIST_BUCKETS];
	__u64 sum_ns;
};

/* Which histogram a series has; user space takes a series out when its cgroup is gone. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SLO_MAX_SERIES);
	__type(key, struct slo_series);
	__type(value, __u32);
} slo_series_slots SEC(".maps");

/* Numbers of histograms that nobody has. User space fills it; number 0 is never in it: that one takes what finds it empty. */
struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, SLO_MAX_SERIES);
	__uint(value_size, sizeof(__u32));
} slo_free_slots SEC(".maps");

/* One stripe for each of a few groups of CPUs, so that they do not write to one cache line; user space adds them up. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SLO_MAX_SERIES); /* times stripes: user space sets it before the load */
	__type(key, __u32);
	__type(value, struct slo_histogram);
} slo_histograms SEC(".maps");

static __always_inline __u32 slo_log2(__u32 value)
{
	__u32 result = (value > 0xffff) << 4, shift;

	value >>= result;
	shift = (value > 0xff) << 3;
	value >>= shift;
	result |= shift;
	shift = (value > 0xf) << 2;
	value >>= shift;
	result |= shift;
	shift = (value > 0x3) << 1;
	value >>= shift;
	return result | shift | value >> 1;
}

static __always_inline __u32 slo_bucket_of(__u64 duration_ns)
{
	__u64 duration_us = duration_ns / 1000;
	__u32 us = (__u32)duration_us, exponent;

	if (duration_us >> 32)
		return SLO_HIST_BUCKETS - 1;
	if (us < SLO_HIST_STEPS)
		return us;
	exponent = slo_log2(us);
	return SLO_HIST_STEPS * (exponent - 1) + ((us >> (exponent - 2)) & (SLO_HIST_STEPS - 1));
}

/* Not inlined: it runs once in a cgroup's life. */
static __noinline __u32 slo_new_series(struct slo_series *series)
{
	__u32 slot = 0, *found;

	if (!series || bpf_map_pop_elem(&slo_free_slots, &slot))
		return 0;
	if (!bpf_map_update_elem(&slo_series_slots, series, &slot, BPF_NOEXIST))
		return slot;
	bpf_map_push_elem(&slo_free_slots, &slot, BPF_ANY);
	found = bpf_map_lookup_elem(&slo_series_slots, series); /* another CPU was first, or there is no room */
	return found ? *found : 0;
}

/* Count a wait of somebody who is asked for, whatever its length. */
static __always_inline void slo_observe(const struct slo_config *config, __u32 kind, __u64 cgroup_id, __u64 duration_ns)
{
	struct slo_series series = {.cgroup_id = cgroup_id, .kind = kind};
	__u32 slot, bucket, *found;
	struct slo_histogram *histogram;

	if (!(config->histograms & (1U << kind)))
		return;
	found = bpf_map_lookup_elem(&slo_series_slots, &series);
	slot = found ? *found : slo_new_series(&series);
	slot = slot * (config->stripe_mask + 1) + (bpf_get_smp_processor_id() & config->stripe_mask);
	histogram = bpf_map_lookup_elem(&slo_histograms, &slot);
	bucket = slo_bucket_of(duration_ns);
	if (!histogram || bucket >= SLO_HIST_BUCKETS)
		return;
	__sync_fetch_and_add(&histogram->counts[bucket], 1);
	__sync_fetch_and_add(&histogram->sum_ns, duration_ns);
}

#endif
