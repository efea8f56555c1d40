// SPDX-License-Identifier: MIT
/*
 * Block requests from their start to their completion, through the block layer's tracepoints.
 *
 * block_io_start runs in the task that makes the request, which is its owner; who happens to run when the device answers
 * is not. The time before block_rq_issue is the queue's, the time after it the device's.
 *
 * block_io_start is there since 6.5 (5a80bd075f3b): on older kernels this program is refused. block_rq_issue, merge and complete carry
 * the request alone, or first, since 5.11 (a54895fa057c); status and bytes of the completion are their own types since 5.16.
 */
#include "slo_core.h"

char LICENSE[] SEC("license") = "GPL";

#define SLO_EIO 5
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

SEC("tp_btf/block_io_start")
int BPF_PROG(slo_block_io_start, const struct request *rq)
{
	const struct slo_config *config = slo_configuration();
	struct io_start start = {};
	__u64 key = (__u64)rq;

	if (!config || !rq)
		return 0;
	slo_owner_is_current(config, &start.owner);
	if (!start.owner.passes) {
		slo_count_filtered(SLO_DISK_IO);
		return 0;
	}
	if (bpf_map_update_elem(&io_starts, &key, &start, BPF_ANY))
		slo_count_dropped(SLO_DISK_IO);
	return 0;
}

SEC("tp_btf/block_rq_issue")
int BPF_PROG(slo_block_rq_issue, const struct request *rq)
{
	__u64 key = (__u64)rq;
	struct io_start *start = bpf_map_lookup_elem(&io_starts, &key);

	if (start)
		start->issue_ns = bpf_ktime_get_ns(); /* of a request that the device gave back, the last issue */
	return 0;
}

/* Made part of another request, which completes for both. */
SEC("tp_btf/block_rq_merge")
int BPF_PROG(slo_block_rq_merge, const struct request *rq)
{
	__u64 key = (__u64)rq;

	if (!bpf_map_delete_elem(&io_starts, &key))
		slo_count_filtered(SLO_DISK_IO);
	return 0;
}

SEC("tp_btf/block_rq_complete")
int BPF_PROG(slo_block_rq_complete, const struct request *rq, blk_status_t error, unsigned int nr_bytes)
{
	const struct slo_config *config = slo_configuration();
	struct slo_event event = {};
	const struct gendisk *disk;
	__u64 key = (__u64)rq;
	struct io_start *start;

	if (!config || !rq)
		return 0;
	start = bpf_map_lookup_elem(&io_starts, &key);
	if (!start || start->owner.seen_ns <= config->since_ns)
		return 0; /* not asked for, under way since before this program, or not of the kind that is accounted */
	if (nr_bytes < rq->__data_len && !error)
		return 0; /* a part of it; the rest follows */
	event.ts_ns = bpf_ktime_get_ns();
	event.duration_ns = event.ts_ns > start->owner.seen_ns ? event.ts_ns - start->owner.seen_ns : 0;
	event.value = start->issue_ns && event.ts_ns > start->issue_ns ? event.ts_ns - start->issue_ns : 0;
	event.kind = SLO_DISK_IO;
	event.err = error ? SLO_EIO : 0;
	event.flags = rq->cmd_flags & SLO_REQ_OP_MASK & 1 ? SLO_F_WRITE : 0;
	disk = rq->q ? rq->q->disk : NULL;
	if (disk)
		event.device = disk->major << 20 | disk->first_minor;
	slo_event_set_owner(&event, &start->owner);
	bpf_map_delete_elem(&io_starts, &key);
	slo_emit(config, &event, true);
	return 0;
}
