"""Pods as Kubernetes describes them: a PodList in, records by pod uid and container id out.

Pure. Sources: the Pod API (https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/), and for service names
https://opentelemetry.io/docs/specs/semconv/non-normative/k8s-attributes/ behind what the container's own environment will say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from libslo.errors import InputError
from libslo.kernel.otel_env import UNKNOWN, resource_attributes

__all__ = ["ContainerRecord", "PodIdentity", "PodRecord", "parse_pod", "parse_pod_list", "workload_of"]

# The label that the owner of a ReplicaSet puts on it and its pods, as the last part of the ReplicaSet's name.
_HASH_LABELS = ("pod-template-hash", "rollouts-pod-template-hash")
# A CronJob calls its Jobs after the minute they were due, since 2021; before that after the second.
# https://github.com/kubernetes/kubernetes/blob/master/pkg/controller/cronjob/utils.go (getJobName)
_CRON_JOB = re.compile(r"(.+)-(\d{8}|\d{10})")
_LATE_S = 31 * 86400.0  # how long after it was due a Job may still start or be tried again
_SERVICE_ANNOTATION = "resource.opentelemetry.io/service.name"
# Not app.kubernetes.io/instance, which that page names as well: all parts of one Helm release share it.
_SERVICE_LABEL = "app.kubernetes.io/name"
_STATUSES = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
_SPECS = ("containers", "initContainers", "ephemeralContainers")
_VARIABLE = re.compile(r"\$(\$|\(([^()]*)\))")
_KEYED = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """What Kubernetes says of one container of one pod; "" is unknown."""

    uid: str
    namespace: str
    pod: str
    container: str
    workload: str
    service: str


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """One container: its name, and the service that its environment names ("" without one)."""

    name: str
    service: str


@dataclass(frozen=True, slots=True)
class PodRecord:
    """One pod. uids: its own, and for a static pod also the configuration hash that its cgroup is called after."""

    uids: tuple[str, ...]
    namespace: str
    name: str
    workload: str
    service: str
    containers: Mapping[str, ContainerRecord] = field(default_factory=dict)  # by container id

    def identity(self, container_id: str) -> PodIdentity:
        """The identity of one of its containers; of the pod alone when that one is not known (its sandbox, or too new)."""
        container = self.containers.get(container_id, ContainerRecord("", ""))
        return PodIdentity(self.uids[0], self.namespace, self.name, container.name, self.workload, container.service or self.service)


def parse_pod_list(value: object) -> tuple[list[PodRecord], int]:
    """The pods of a PodList, and how many of its items were none. Raises InputError when the whole is no PodList."""
    if not isinstance(value, dict) or value.get("kind") not in ("PodList", "List"):
        raise InputError("not a PodList")
    items = [] if value.get("items") is None else value["items"]  # Go writes an empty list as null
    if not isinstance(items, list):
        raise InputError("not a PodList: its items are no list")
    pods, bad = [], 0
    for item in items:
        try:
            pods.append(parse_pod(item))
        except InputError:
            bad += 1
    return pods, bad


def parse_pod(value: object) -> PodRecord:
    """One pod. Raises InputError for what has no name or uid."""
    pod = _dict(value)
    metadata, spec, status = _dict(pod.get("metadata")), _dict(pod.get("spec")), _dict(pod.get("status"))
    uid, name, namespace = _text(metadata.get("uid")), _text(metadata.get("name")), _text(metadata.get("namespace"))
    if not uid or not name:
        raise InputError("not a pod: no name or no uid")
    labels, annotations = _dict(metadata.get("labels")), _dict(metadata.get("annotations"))
    # A static pod: the kubelet calls the cgroup after the hash of its file, the API server gives the mirror pod a uid of its own.
    config_hash = _text(annotations.get("kubernetes.io/config.hash"))
    workload = workload_of(metadata, _text(spec.get("nodeName")))
    services = {
        _text(container.get("name")): _container_service(container, metadata, spec, status)
        for key in _SPECS
        for container in _dicts(spec.get(key))
    }
    containers = {
        container_id: ContainerRecord(_text(entry.get("name")), services.get(_text(entry.get("name")), ""))
        for key in _STATUSES
        for entry in _dicts(status.get(key))
        for container_id in _container_ids(entry)
    }
    service = _text(annotations.get(_SERVICE_ANNOTATION)) or _text(labels.get(_SERVICE_LABEL))
    return PodRecord(
        uids=(uid, config_hash) if config_hash and config_hash != uid else (uid,),
        namespace=namespace,
        name=name,
        workload=workload,
        service=service or workload,
        containers=containers,
    )


def workload_of(metadata: Mapping[str, Any], node: str = "") -> str:
    """The name of what keeps a pod running: the Deployment behind its ReplicaSet, the CronJob behind its Job, else its owner.

    A pod without an owner is its own workload. node: where it runs; a static pod is called after it.
    """
    name, labels = _text(metadata.get("name")), _dict(metadata.get("labels"))
    owners = _dicts(metadata.get("ownerReferences"))
    owner = next((each for each in owners if each.get("controller") is True), owners[0] if owners else {})
    kind, owner_name = _text(owner.get("kind")), _text(owner.get("name"))
    if kind == "ReplicaSet":
        for label in _HASH_LABELS:
            suffix = f"-{_text(labels.get(label))}"
            if suffix != "-" and owner_name.endswith(suffix):
                return owner_name.removesuffix(suffix)
    elif kind == "Job":
        return _cron_job(owner_name, _text(metadata.get("creationTimestamp"))) or owner_name
    elif kind == "Node":
        return name.removesuffix(f"-{node or owner_name}")
    return owner_name or name


def _cron_job(job: str, created: str) -> str:
    """The CronJob that a Job's name stands for: its number must be a time shortly before the pod was made, not just any date."""
    match = _CRON_JOB.fullmatch(job)
    try:
        created_s = datetime.fromisoformat(created).timestamp()
    except (ValueError, OverflowError):
        return ""
    if not match:
        return ""
    due_s = int(match.group(2)) * (60 if len(match.group(2)) == 8 else 1)
    return match.group(1) if -60 <= created_s - due_s <= _LATE_S else ""


def _container_ids(status: Mapping[str, Any]) -> Iterator[str]:
    """Ids of this container, and of those that ran in its place before."""
    states = [_dict(_dict(status.get(key)).get("terminated")) for key in ("state", "lastState")]
    for source in (status, *states):
        container_id = _text(source.get("containerID")).rpartition("//")[2]  # containerd://…, cri-o://…, docker://…
        if container_id:
            yield container_id


def _container_service(
    container: Mapping[str, Any], metadata: Mapping[str, Any], spec: Mapping[str, Any], status: Mapping[str, Any]
) -> str:
    values: dict[str, str] = {}
    for entry in _dicts(container.get("env")):
        name = _text(entry.get("name"))
        if "valueFrom" in entry:
            path = _text(_dict(_dict(entry["valueFrom"]).get("fieldRef")).get("fieldPath"))
            values[name] = _field(path, metadata, spec, status)
        else:
            values[name] = _expand(_text(entry.get("value")), values)
    known: dict[str, bytes] = {name: values[name].encode() for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES") if name in values}
    service = resource_attributes(known).get("service.name", "")
    return "" if UNKNOWN in service else service


def _expand(text: str, values: Mapping[str, str]) -> str:
    """Replace $(NAME) by what was set before it; $$ is one $. What cannot be known from the pod alone becomes UNKNOWN.

    https://github.com/kubernetes/kubernetes/blob/master/third_party/forked/golang/expansion/expand.go
    """
    return _VARIABLE.sub(lambda match: "$" if match.group(1) == "$" else values.get(match.group(2), UNKNOWN), text)


def _field(path: str, metadata: Mapping[str, Any], spec: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    keyed = _KEYED.fullmatch(path)
    if keyed:
        return _text(_dict(metadata.get(keyed.group(1))).get(keyed.group(2)))
    part, _, name = path.partition(".")
    allowed = {"metadata": ("name", "namespace", "uid"), "spec": ("nodeName", "serviceAccountName"), "status": ("hostIP", "podIP")}
    if name not in allowed.get(part, ()):
        return UNKNOWN
    return _text({"metadata": metadata, "spec": spec, "status": status}[part].get(name)) or UNKNOWN


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
