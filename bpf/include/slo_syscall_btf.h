/* SPDX-License-Identifier: MIT */
/*
 * Time inside read, write and sync calls, through tracepoints that the verifier knows the arguments of: the registers are read
 * without a helper, so that this runs under every lockdown, and the number keeps other calls out at the exit too.
 *
 * An object that defines SLO_SEES_FILES takes the file's type as well, with a helper that lockdown=confidentiality refuses.
 */
#ifndef SLO_SYSCALL_BTF_H
#define SLO_SYSCALL_BTF_H

#include "slo_syscall.h"

char LICENSE[] SEC("license") = "GPL";

#if defined(__TARGET_ARCH_x86)
#define SLO_USER32_CS 0x23 /* arch/x86/include/asm/segment.h: the code segment of a 32-bit program */
#define FIRST(regs) ((__u32)(regs)->di)
#define NUMBER(regs) ((regs)->orig_ax)
#define IS_COMPAT(regs) (((regs)->cs & 0xffff) == SLO_USER32_CS)
#elif defined(__TARGET_ARCH_arm64)
#define SLO_MODE32 0x10 /* arch/arm64/include/uapi/asm/ptrace.h: PSR_MODE32_BIT */
#define FIRST(regs) ((__u32)(regs)->user_regs.regs[0])
#define NUMBER(regs) ((unsigned long)(regs)->syscallno)
#define IS_COMPAT(regs) ((regs)->user_regs.pstate & SLO_MODE32)
#endif

SEC("tp_btf/sys_enter")
int BPF_PROG(slo_sys_enter, const struct pt_regs *regs, long number)
{
	slo_hit();

	__u32 call = slo_call_of(number);
	const struct slo_config *config;

	if (!call || !regs || IS_COMPAT(regs))
		return 0;
	config = slo_configuration();
	if (config)
		slo_call_begins(config, call, FIRST(regs), 0, false);
	return 0;
}

SEC("tp_btf/sys_exit")
int BPF_PROG(slo_sys_exit, const struct pt_regs *regs, long returned)
{
	slo_hit();

	if (regs && slo_call_of(NUMBER(regs)))
		slo_call_ends(slo_configuration(), returned);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(slo_process_exit)
{
	slo_hit();

	slo_thread_exits();
	return 0;
}

#endif
