// SPDX-License-Identifier: MIT
/*
 * Block requests from their queue to their completion: for kernels before 6.5, which have no block_io_start.
 *
 * A request begins for us when it enters a scheduler's queue, or goes to its device without one. The task that puts it there
 * is mostly the one that made it, and is taken for its owner. It is kept whether it is asked for or not, because the one that
 * issues it later may be another, which must not be taken for it.
 */
#include "slo_block.h"

char LICENSE[] SEC("license") = "GPL";

#define SLO_REQ_OP_FLUSH 2	/* include/linux/blk_types.h: a request of the flush machinery, nobody's in particular */
#define SLO_REQ_OP_DRV_IN 34	/* from here on commands of the drivers, which are no file I/O */

static __always_inline int seen(const struct request *rq, bool issued)
{
	const struct slo_config *config = slo_configuration();
	struct io_start *known, start = {};
	__u64 key = (__u64)rq;
	__u32 operation;

	if (!config || !rq)
		return 0;
	operation = rq->cmd_flags & SLO_REQ_OP_MASK;
	if (operation == SLO_REQ_OP_FLUSH || operation >= SLO_REQ_OP_DRV_IN)
		return 0;
	known = bpf_map_lookup_elem(&io_starts, &key);
	if (known && known->owner.seen_ns > config->since_ns) {
		if (issued)
			known->issue_ns = bpf_ktime_get_ns(); /* of a request that the device gave back, the last issue */
		return 0;
	}
	slo_owner_is_current(config, &start.owner);
	start.issue_ns = issued ? start.owner.seen_ns : 0;
	if (bpf_map_update_elem(&io_starts, &key, &start, BPF_ANY))
		slo_count_dropped(SLO_DISK_IO);
	return 0;
}

SEC("tp_btf/block_rq_insert")
int BPF_PROG(slo_block_rq_insert, const struct request *rq)
{
	slo_hit();

	return seen(rq, false);
}

SEC("tp_btf/block_rq_issue")
int BPF_PROG(slo_block_rq_issue, const struct request *rq)
{
	slo_hit();

	return seen(rq, true);
}

SEC("tp_btf/block_rq_merge")
int BPF_PROG(slo_block_rq_merge, const struct request *rq)
{
	slo_hit();

	io_merged(slo_configuration(), (__u64)rq);
	return 0;
}

SEC("tp_btf/block_rq_complete")
int BPF_PROG(slo_block_rq_complete, const struct request *rq, blk_status_t status, unsigned int nr_bytes)
{
	slo_hit();

	const struct slo_config *config = slo_configuration();

	if (config && rq)
		io_completes(config, rq, status, nr_bytes);
	return 0;
}
