// SPDX-License-Identifier: MIT
/*
 * Time inside read, write and sync calls, through raw tracepoints: no types of the running kernel are needed.
 *
 * The registers are those of the system call's ABI (struct pt_regs of the architecture), at places that do not move between
 * kernels. Reading them takes a helper that lockdown=confidentiality refuses; the variant with types does without.
 */
#define BPF_NO_PRESERVE_ACCESS_INDEX
#include "slo_syscall.h"

char LICENSE[] SEC("license") = "GPL";

#if defined(__TARGET_ARCH_x86)
#define SLO_USER32_CS 0x23 /* arch/x86/include/asm/segment.h: the code segment of a 32-bit program */

/* From di on: the first argument, the number, and what code made the call. */
struct call_registers {
	__u64 di;
	__u64 number;
	__u64 ip;
	__u64 cs; /* since 6.9 its upper half holds other things */
};

static __always_inline bool read_registers(const struct pt_regs *regs, struct call_registers *registers)
{
	return !bpf_probe_read_kernel(registers, sizeof(*registers), &regs->di);
}

#define FIRST(registers) ((__u32)(registers)->di)
#define IS_COMPAT(registers) (((registers)->cs & 0xffff) == SLO_USER32_CS)
#elif defined(__TARGET_ARCH_arm64)
#define SLO_MODE32 0x10 /* arch/arm64/include/uapi/asm/ptrace.h: PSR_MODE32_BIT */

struct call_registers {
	__u64 first;
	__u64 pstate;
};

static __always_inline bool read_registers(const struct pt_regs *regs, struct call_registers *registers)
{
	return !bpf_probe_read_kernel(&registers->first, sizeof(registers->first), &regs->user_regs.regs[0]) &&
	       !bpf_probe_read_kernel(&registers->pstate, sizeof(registers->pstate), &regs->user_regs.pstate);
}

#define FIRST(registers) ((__u32)(registers)->first)
#define IS_COMPAT(registers) ((registers)->pstate & SLO_MODE32)
#endif

SEC("raw_tp/sys_enter")
int slo_sys_enter(struct bpf_raw_tracepoint_args *ctx)
{
	slo_hit();

	struct call_registers registers = {};
	__u32 call = slo_call_of(ctx->args[1]);
	const struct slo_config *config;

	if (!call)
		return 0;
	config = slo_configuration();
	if (!config || !read_registers((const struct pt_regs *)ctx->args[0], &registers) || IS_COMPAT(&registers))
		return 0;
	slo_call_begins(config, call, FIRST(&registers), 0, false);
	return 0;
}

/* Its arguments do not hold the number, and reading it out of the registers costs as much as looking for a start. */
SEC("raw_tp/sys_exit")
int slo_sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
	slo_hit();

	slo_call_ends(slo_configuration(), (long)ctx->args[1]);
	return 0;
}

SEC("raw_tp/sched_process_exit")
int slo_process_exit(struct bpf_raw_tracepoint_args *ctx)
{
	slo_hit();

	slo_thread_exits();
	return 0;
}
