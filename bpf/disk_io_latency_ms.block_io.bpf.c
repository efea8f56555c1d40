// SPDX-License-Identifier: MIT
/*
 * Block requests from their start to their completion, through the block layer's tracepoints.
 *
 * block_io_start runs in the task that makes the request, which is its owner; who happens to run when the device answers
 * is not. The time before block_rq_issue is the queue's, the time after it the device's.
 *
 * block_io_start is there since 6.5 (5a80bd075f3b): on older kernels this program is refused.
 */
#include "slo_block.h"

char LICENSE[] SEC("license") = "GPL";

SEC("tp_btf/block_io_start")
int BPF_PROG(slo_block_io_start, const struct request *rq)
{
	slo_hit();

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
	slo_hit();

	__u64 key = (__u64)rq;
	struct io_start *start = bpf_map_lookup_elem(&io_starts, &key);

	if (start)
		start->issue_ns = bpf_ktime_get_ns(); /* of a request that the device gave back, the last issue */
	return 0;
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
