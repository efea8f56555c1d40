/* SPDX-License-Identifier: MIT */
/*
 * Block requests from their start to their completion, keyed by the request: what the programs of disk_io_latency_ms with
 * types have in common. They differ in how they learn of the start and of its owner.
 *
 * block_rq_issue, merge and complete carry the request alone, or first, since 5.11 (a54895fa057c); status and bytes of the
 * completion are their own types since 5.16.
 */
#ifndef SLO_BLOCK_H
#define SLO_BLOCK_H

#include "slo_core.h"

#define SLO_REQ_OP_MASK 0xff /* include/linux/blk_types.h: REQ_OP_BITS; odd operations transfer data to the device */

struct io_start {
	struct slo_owner owner;
	__u64 issue_ns; /* 0: still in the queue */
};

/*
 * By the request's address. Requests belong to their queue and are used again and again, so that a start which never saw
 * its end is overwritten by the next one.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct io_start);
} io_starts SEC(".maps");

/* errno of a blk_status_t, as blk_status_to_errno() has it: block/blk-core.c, blk_errors[]. */
static __always_inline __u32 io_errno(blk_status_t status)
{
	switch (status) {
	case 0: return 0;
	case 1: return 95;  /* BLK_STS_NOTSUPP, EOPNOTSUPP */
	case 2: return 110; /* BLK_STS_TIMEOUT, ETIMEDOUT */
	case 3: return 28;  /* BLK_STS_NOSPC, ENOSPC */
	case 4: return 67;  /* BLK_STS_TRANSPORT, ENOLINK */
	case 5: return 121; /* BLK_STS_TARGET, EREMOTEIO */
	case 6: return 52;  /* BLK_STS_RESV_CONFLICT, EBADE */
	case 7: return 61;  /* BLK_STS_MEDIUM, ENODATA */
	case 8: return 84;  /* BLK_STS_PROTECTION, EILSEQ */
	case 9: return 12;  /* BLK_STS_RESOURCE, ENOMEM */
	}
	return 5; /* EIO */
}

/* Part of another request now, which completes for both. */
static __always_inline void io_merged(const struct slo_config *config, __u64 key)
{
	struct io_start *start = bpf_map_lookup_elem(&io_starts, &key);
	bool counts = config && start && start->owner.seen_ns > config->since_ns;

	if (!bpf_map_delete_elem(&io_starts, &key) && counts)
		slo_count_filtered(SLO_DISK_IO);
}

static __always_inline void io_completes(const struct slo_config *config, const struct request *rq, blk_status_t status, __u32 nr_bytes)
{
	struct slo_event event = {};
	const struct gendisk *disk;
	__u64 key = (__u64)rq;
	struct io_start *start;
	bool passes;

	start = bpf_map_lookup_elem(&io_starts, &key);
	if (!start || start->owner.seen_ns <= config->since_ns)
		return; /* not asked for, under way since before this program, or not of the kind that is accounted */
	if (nr_bytes < rq->__data_len && !status)
		return; /* a part of it; the rest follows */
	event.ts_ns = bpf_ktime_get_ns();
	event.duration_ns = event.ts_ns > start->owner.seen_ns ? event.ts_ns - start->owner.seen_ns : 0;
	event.value = start->issue_ns && event.ts_ns > start->issue_ns ? event.ts_ns - start->issue_ns : 0;
	event.kind = SLO_DISK_IO;
	event.err = io_errno(status);
	event.flags = rq->cmd_flags & SLO_REQ_OP_MASK & 1 ? SLO_F_WRITE : 0;
	disk = rq->q ? rq->q->disk : NULL;
	if (disk)
		event.device = disk->major << 20 | disk->first_minor;
	slo_event_set_owner(&event, &start->owner);
	passes = start->owner.passes;
	bpf_map_delete_elem(&io_starts, &key);
	slo_emit(config, &event, passes);
}

#endif
