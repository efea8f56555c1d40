// SPDX-License-Identifier: MIT
/*
 * TLS handshakes of clients that use OpenSSL, by its functions in user space.
 *
 * A wait goes from the first SSL_do_handshake() or SSL_connect() of an SSL object to the first that returns 1; the second
 * calls the first, unless the compiler has put a copy into it, so whichever returns first ends it. A non-blocking socket makes them
 * return -1 in between; whether that was a failure is in no place that can be read here, and SSL_get_error() would tell
 * but is called for each read that would block, at several microseconds each. So the object's end tells: one that is
 * freed without having shaken hands has failed, or was given up.
 * A section's name says after the colon which function to attach to; libslo/kernel/userfunctions.py finds the libraries.
 */
#define BPF_NO_PRESERVE_ACCESS_INDEX /* only registers are read: no BTF of the kernel is needed */
#include "slo_core.h"

#include "slo_tls.h"

char LICENSE[] SEC("license") = "GPL";

#define TLS_MAX_OBJECTS 8192

/* An SSL object: its address is unique within its process only. */
struct tls_object {
	__u64 ssl;
	__u64 pid;
};

struct tls_start {
	struct slo_owner owner; /* who made the first call */
	__u64 start_ns;
};

/*
 * LRU: a process that dies in a handshake, or never frees an object, leaves its entry, and no hook says so cheaply. An
 * eviction loses the failure of an object that was not freed while thousands of others began.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, TLS_MAX_OBJECTS);
	__type(key, struct tls_object);
	__type(value, struct tls_start);
} tls_starts SEC(".maps");

/* Objects that serve (the same function shakes hands for both sides), and those that have shaken hands already. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, TLS_MAX_OBJECTS);
	__type(key, struct tls_object);
	__type(value, __u32);
} tls_passed_over SEC(".maps");

/* Which object a thread is shaking hands for: the return has no arguments. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, TLS_MAX_OBJECTS);
	__type(key, __u64); /* bpf_get_current_pid_tgid() */
	__type(value, __u64);
} tls_calls SEC(".maps");

static __always_inline void name_object(struct tls_object *object, __u64 ssl)
{
	object->ssl = ssl;
	object->pid = bpf_get_current_pid_tgid() >> 32;
}

static __always_inline void finish(const struct slo_config *config, const struct tls_object *object, __u32 kind, __u32 outcome)
{
	struct slo_event event = {};
	struct tls_start *start = bpf_map_lookup_elem(&tls_starts, object);
	bool passes;

	if (!start)
		return;
	event.ts_ns = bpf_ktime_get_ns();
	event.duration_ns = event.ts_ns - start->start_ns;
	event.value = 1;
	event.kind = kind;
	event.qtype = outcome;
	slo_event_set_owner(&event, &start->owner);
	passes = start->owner.passes;
	/* Whoever deletes the entry owns the event. */
	if (bpf_map_delete_elem(&tls_starts, object) || event.ts_ns - event.duration_ns <= config->since_ns)
		return;
	if (slo_wanted(config, kind))
		slo_emit(config, &event, passes);
}

static __always_inline void pass_over(const struct tls_object *object)
{
	__u32 yes = 1;

	bpf_map_update_elem(&tls_passed_over, object, &yes, BPF_ANY);
}

static __always_inline int serves(struct pt_regs *ctx)
{
	struct tls_object object;

	name_object(&object, PT_REGS_PARM1(ctx));
	pass_over(&object);
	return 0;
}

static __always_inline int begins(struct pt_regs *ctx)
{
	const struct slo_config *config = slo_configuration();
	__u64 thread = bpf_get_current_pid_tgid(), ssl = PT_REGS_PARM1(ctx);
	struct tls_start start = {};
	struct tls_object object;

	name_object(&object, ssl);
	if (!config || bpf_map_lookup_elem(&tls_passed_over, &object))
		return 0;
	if (!bpf_map_lookup_elem(&tls_starts, &object)) {
		slo_owner_is_current(config, &start.owner);
		start.start_ns = start.owner.seen_ns;
		if (bpf_map_update_elem(&tls_starts, &object, &start, BPF_NOEXIST)) {
			/* How it will end is unknown now, so the loss is booked where a healthy handshake would be. */
			slo_count_dropped(slo_wanted(config, SLO_TLS_HANDSHAKE) ? SLO_TLS_HANDSHAKE : SLO_TLS_FAIL);
			return 0;
		}
	}
	bpf_map_update_elem(&tls_calls, &thread, &ssl, BPF_ANY);
	return 0;
}

static __always_inline int returns(struct pt_regs *ctx)
{
	const struct slo_config *config = slo_configuration();
	__u64 thread = bpf_get_current_pid_tgid(), *ssl;
	struct tls_object object;

	ssl = bpf_map_lookup_elem(&tls_calls, &thread);
	if (!ssl)
		return 0;
	name_object(&object, *ssl);
	bpf_map_delete_elem(&tls_calls, &thread);
	if (!config || (int)PT_REGS_RC(ctx) != 1)
		return 0;
	pass_over(&object);
	finish(config, &object, SLO_TLS_HANDSHAKE, SLO_TLS_DONE);
	return 0;
}

SEC("uprobe/openssl:SSL_set_accept_state")
int slo_ssl_set_accept(struct pt_regs *ctx)
{
	slo_hit();

	return serves(ctx);
}

SEC("uprobe/openssl:SSL_accept")
int slo_ssl_accept(struct pt_regs *ctx)
{
	slo_hit();

	return serves(ctx);
}

SEC("uprobe/openssl:SSL_do_handshake")
int slo_ssl_handshake(struct pt_regs *ctx)
{
	slo_hit();

	return begins(ctx);
}

SEC("uprobe/openssl:SSL_connect")
int slo_ssl_connect(struct pt_regs *ctx)
{
	slo_hit();

	return begins(ctx);
}

SEC("uretprobe/openssl:SSL_do_handshake")
int slo_ssl_handshake_returns(struct pt_regs *ctx)
{
	slo_hit();

	return returns(ctx);
}

SEC("uretprobe/openssl:SSL_connect")
int slo_ssl_connect_returns(struct pt_regs *ctx)
{
	slo_hit();

	return returns(ctx);
}

SEC("uprobe/openssl:SSL_free")
int slo_ssl_free(struct pt_regs *ctx)
{
	slo_hit();

	const struct slo_config *config = slo_configuration();
	struct tls_object object;

	name_object(&object, PT_REGS_PARM1(ctx));
	if (!object.ssl)
		return 0;
	if (!bpf_map_delete_elem(&tls_passed_over, &object))
		return 0;
	if (config)
		finish(config, &object, SLO_TLS_FAIL, SLO_TLS_LIBRARY);
	return 0;
}
