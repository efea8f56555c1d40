// SPDX-License-Identifier: MIT
/* Next to nothing, at a place that user space can hit at will: what a program costs before its own code runs. */
#define BPF_NO_PRESERVE_ACCESS_INDEX
#include "vmlinux.h"

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

SEC("raw_tp/sys_enter")
int slo_calibration(void *context)
{
	return 0;
}
