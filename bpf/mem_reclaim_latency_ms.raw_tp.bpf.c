// SPDX-License-Identifier: MIT
/* Reclaims of a task through raw tracepoints: no types of the running kernel are needed. */
#define BPF_NO_PRESERVE_ACCESS_INDEX
#define SLO_TRACEPOINT "raw_tp/"
#include "slo_reclaim.h"
