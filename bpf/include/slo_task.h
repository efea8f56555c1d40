/* SPDX-License-Identifier: MIT */
/* The target filters for a task that is not the current one, by direct dereference. */
#ifndef SLO_TASK_H
#define SLO_TASK_H

#include "slo_core.h"

#define SLO_MAX_CGROUP_LEVELS 16 /* a container of Kubernetes lives at level 4 or 5 */

/* Byte by byte: the verifier takes comm for what it is declared as, char[16]. */
static __always_inline void slo_task_comm(const struct task_struct *task, char *comm)
{
#pragma unroll
	for (int i = 0; i < SLO_COMM_LEN; i++)
		comm[i] = task->comm[i];
}

static __always_inline __u64 slo_task_cgroup_id(const struct task_struct *task)
{
	const struct css_set *set = task->cgroups;
	const struct cgroup *cgroup = set ? set->dfl_cgrp : NULL;
	const struct kernfs_node *node = cgroup ? cgroup->kn : NULL;

	return node ? node->id : 0;
}

struct slo_cgroup_search {
	__u64 cgroup_id;
	bool found;
};

static int slo_compare_cgroup(__u32 index, struct slo_cgroup_search *search)
{
	const struct slo_config *config = slo_configuration();

	if (!config || index >= SLO_MAX_TARGETS)
		return 1;
	search->found = config->cgroup_ids[index] == search->cgroup_id;
	return search->found;
}

/* A callback, not a loop: the verifier looks at it once, where it would go through each round at each level for each task. */
static __always_inline bool slo_cgroup_id_is_target(const struct slo_config *config, __u64 cgroup_id)
{
	struct slo_cgroup_search search = {.cgroup_id = cgroup_id};

	bpf_loop(config->n_cgroups, slo_compare_cgroup, &search, 0);
	return search.found;
}

/* As slo_current_cgroup_passes(): upwards through the css, because a pointer out of cgroup->ancestors[] is none to the verifier. */
static __always_inline bool slo_task_cgroup_passes(const struct slo_config *config, const struct task_struct *task)
{
	const struct css_set *set = task->cgroups;
	const struct cgroup *cgroup = set ? set->dfl_cgrp : NULL;

	if (!config->n_cgroups)
		return true;
	for (int i = 0; i < SLO_MAX_CGROUP_LEVELS && cgroup; i++) {
		const struct kernfs_node *node = cgroup->kn;
		const struct cgroup_subsys_state *parent = cgroup->self.parent;

		if (node && slo_cgroup_id_is_target(config, node->id))
			return true;
		cgroup = parent ? parent->cgroup : NULL;
	}
	return false;
}

static __always_inline bool slo_task_passes(const struct slo_config *config, const struct task_struct *task)
{
	char comm[SLO_COMM_LEN] __attribute__((aligned(8))) = {};

	if (config->has_comm)
		slo_task_comm(task, comm);
	return slo_process_passes(config, task->tgid, comm) && slo_task_cgroup_passes(config, task);
}

#endif
