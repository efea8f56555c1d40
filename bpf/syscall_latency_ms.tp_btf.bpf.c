// SPDX-License-Identifier: MIT
/* Calls by tracepoints with types, and what kind of file a long one was about, by the kernel's own table of descriptors. */
#define SLO_SEES_FILES
#include "slo_syscall_btf.h"
