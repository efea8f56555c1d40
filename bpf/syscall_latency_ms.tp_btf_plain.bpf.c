// SPDX-License-Identifier: MIT
/* The same without the file: for a kernel under lockdown=confidentiality, which lets no program read its memory by address. */
#include "slo_syscall_btf.h"
