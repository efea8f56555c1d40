// SPDX-License-Identifier: MIT
/* How a kprobe fares on this kernel: nothing but a program to load and attach, because lists of features claim what does not work. */
#define BPF_NO_PRESERVE_ACCESS_INDEX
#include "vmlinux.h"

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

SEC("kprobe/vfs_read")
int slo_ability(void *context)
{
	return 0;
}
