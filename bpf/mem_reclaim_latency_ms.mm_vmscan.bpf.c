// SPDX-License-Identifier: MIT
/* Reclaims of a task through tracepoints that the verifier knows the arguments of. */
#define SLO_TRACEPOINT "tp_btf/"
#include "slo_reclaim.h"
