// SPDX-License-Identifier: MIT
/*
 * Block requests through the block layer's classic tracepoints, keyed by device and first sector: no types of the running
 * kernel are needed. Who puts a request into the queue, or issues it, is taken for its owner.
 *
 * The offsets are those of the tracepoints' format files; contracts/vocabulary/variants.json has them too, and the loader
 * compares them with the running kernel's before it attaches.
 */
#define BPF_NO_PRESERVE_ACCESS_INDEX
#include "slo_core.h"

char LICENSE[] SEC("license") = "GPL";

/* block_rq_insert, block_rq_issue and block_rq_merge as well as block_rq_complete, as far as they are the same. */
struct block_rq_record {
	__u64 common;
	__u32 dev;
	__u64 sector;
	__u32 nr_sector;
	__s32 error;	    /* of block_rq_complete: a negative errno */
	__u32 operation;    /* the begin of rwbs; since 6.11 (aa6ff4eb7c10) behind two bytes of ioprio */
};

struct io_key {
	__u64 sector;
	__u32 dev;
	__u32 pad;
};

struct io_start {
	struct slo_owner owner;
	__u64 issue_ns; /* 0: still in the queue */
};

/* LRU: a request that grows at its front while it is queued changes its key, and leaves the old entry behind. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct io_key);
	__type(value, struct io_start);
} io_starts SEC(".maps");

/*
 * The first letter of rwbs behind F, which stands for a flush before it: R is a read, W, D and others are not.
 * An ioprio in its place has a hint of at most 7 in bits 3 to 12 (include/uapi/linux/ioprio.h), so that its low byte is no letter.
 */
static __always_inline bool transfers_to_device(__u32 operation)
{
	if ((operation & 0xff) < 'A')
		operation >>= 16;
	if ((operation & 0xff) == 'F')
		operation >>= 8;
	return (operation & 0xff) != 'R';
}

static __always_inline int seen(const struct block_rq_record *record, bool issued)
{
	const struct slo_config *config = slo_configuration();
	struct io_key key = {.sector = record->sector, .dev = record->dev};
	struct io_start *known, start = {};

	if (!config || !record->nr_sector)
		return 0; /* without sectors: a flush, or a command that is no file I/O */
	known = bpf_map_lookup_elem(&io_starts, &key);
	if (known && known->owner.seen_ns > config->since_ns && (issued || known->issue_ns)) {
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

SEC("tracepoint/block/block_rq_insert")
int slo_block_rq_insert(struct block_rq_record *record)
{
	slo_hit();

	return seen(record, false);
}

SEC("tracepoint/block/block_rq_issue")
int slo_block_rq_issue(struct block_rq_record *record)
{
	slo_hit();

	return seen(record, true);
}

/* Made part of another request, which completes for both. */
SEC("tracepoint/block/block_rq_merge")
int slo_block_rq_merge(struct block_rq_record *record)
{
	slo_hit();

	struct io_key key = {.sector = record->sector, .dev = record->dev};

	if (!bpf_map_delete_elem(&io_starts, &key) && slo_configuration())
		slo_count_filtered(SLO_DISK_IO);
	return 0;
}

SEC("tracepoint/block/block_rq_complete")
int slo_block_rq_complete(struct block_rq_record *record)
{
	slo_hit();

	const struct slo_config *config = slo_configuration();
	struct io_key key = {.sector = record->sector, .dev = record->dev};
	struct slo_event event = {};
	struct io_start *start;
	bool passes;

	if (!config)
		return 0;
	start = bpf_map_lookup_elem(&io_starts, &key);
	if (!start || start->owner.seen_ns <= config->since_ns)
		return 0; /* under way since before this program, or the later part of a request that came back in parts */
	event.ts_ns = bpf_ktime_get_ns();
	event.duration_ns = event.ts_ns > start->owner.seen_ns ? event.ts_ns - start->owner.seen_ns : 0;
	event.value = start->issue_ns && event.ts_ns > start->issue_ns ? event.ts_ns - start->issue_ns : 0;
	event.kind = SLO_DISK_IO;
	event.err = record->error < 0 ? -record->error : 0;
	event.flags = transfers_to_device(record->operation) ? SLO_F_WRITE : 0;
	event.device = record->dev;
	slo_event_set_owner(&event, &start->owner);
	passes = start->owner.passes;
	bpf_map_delete_elem(&io_starts, &key);
	slo_emit(config, &event, passes);
	return 0;
}
