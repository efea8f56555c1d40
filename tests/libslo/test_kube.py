"""kube: what a PodList says of pods, containers, workloads and services."""

from __future__ import annotations

from typing import Any

import pytest
from fake_kube import CONTAINER, UID, pod, pod_list
from hypothesis import given
from hypothesis import strategies as st

from libslo.errors import InputError
from libslo.kernel.kube import PodIdentity, parse_pod, parse_pod_list


def service(env: list[dict[str, Any]], **metadata: Any) -> str:
    return parse_pod(pod(env=env, **metadata)).identity(CONTAINER).service


def test_a_container_is_named() -> None:
    """Namespace, pod, container, Deployment and service come from the pod's own record."""
    record = parse_pod(pod(env=[{"name": "OTEL_SERVICE_NAME", "value": "chat"}]))
    assert record.identity(CONTAINER) == PodIdentity(UID, "prod", "chat-7d4b9c-x2x9z", "app", "chat", "chat")


def test_a_container_without_a_status_has_its_pod() -> None:
    """The sandbox, or a container whose status has not come yet, is named by its pod alone."""
    assert parse_pod(pod()).identity("f" * 64) == PodIdentity(UID, "prod", "chat-7d4b9c-x2x9z", "", "chat", "chat")


def test_every_kind_of_container_is_found() -> None:
    """Init, ephemeral and earlier instances of a container are known by their ids, of every runtime's scheme."""
    value = pod(containers={"app": "a" * 64})
    value["status"]["containerStatuses"][0]["containerID"] = "docker://" + "a" * 64
    value["status"]["containerStatuses"][0]["lastState"] = {"terminated": {"containerID": "cri-o://" + "b" * 64}}
    value["status"]["initContainerStatuses"] = [{"name": "setup", "containerID": "containerd://" + "c" * 64}]
    value["status"]["ephemeralContainerStatuses"] = [{"name": "debug", "containerID": "containerd://" + "d" * 64}]
    value["spec"]["initContainers"] = [{"name": "setup", "env": [{"name": "OTEL_SERVICE_NAME", "value": "migrate"}]}]
    record = parse_pod(value)
    names = {letter: record.identity(letter * 64).container for letter in "abcd"}
    assert names == {"a": "app", "b": "app", "c": "setup", "d": "debug"}
    assert record.identity("c" * 64).service == "migrate"


@pytest.mark.parametrize(
    ("owner", "labels", "workload"),
    [
        (("ReplicaSet", "chat-7d4b9c"), {"pod-template-hash": "7d4b9c"}, "chat"),
        (("ReplicaSet", "chat-7d4b9c"), {"rollouts-pod-template-hash": "7d4b9c"}, "chat"),
        (("ReplicaSet", "chat-7d4b9c"), {}, "chat-7d4b9c"),
        (("ReplicaSet", "chat"), {"pod-template-hash": "7d4b9c"}, "chat"),
        (("StatefulSet", "vectors"), {}, "vectors"),
        (("DaemonSet", "fluent-bit"), {}, "fluent-bit"),
        (("Job", "reindex-29455384"), {}, "reindex"),
        (("Job", "reindex-1767323040"), {}, "reindex"),
        (("Job", "reindex-20260102"), {}, "reindex-20260102"),
        (("Job", "reindex"), {}, "reindex"),
        (("Job", "reindex-29355384"), {}, "reindex-29355384"),
        (("RayCluster", "llm"), {}, "llm"),
        (("Node", "node-a"), {}, "kube-proxy"),
        (None, {}, "kube-proxy-node-a"),
    ],
)
def test_workloads(owner: tuple[str, str] | None, labels: dict[str, str], workload: str) -> None:
    """The workload is what keeps the pod running: hashes and due times are taken off only where they are some."""
    assert parse_pod(pod("kube-proxy-node-a", owner=owner, labels=labels)).workload == workload


def test_the_controller_is_the_owner_that_counts() -> None:
    """Of several owners, the controller."""
    owners = [{"kind": "Lease", "name": "other"}, {"kind": "StatefulSet", "name": "db", "controller": True}]
    assert parse_pod(pod(owner=None, ownerReferences=owners)).workload == "db"


def test_service_names_in_order() -> None:
    """OTEL_SERVICE_NAME, then OTEL_RESOURCE_ATTRIBUTES, then the annotation, then the label, then the workload."""
    name = {"name": "OTEL_SERVICE_NAME", "value": "one"}
    attributes = {"name": "OTEL_RESOURCE_ATTRIBUTES", "value": "a=b,service.name=t%77o"}
    annotation = {"annotations": {"resource.opentelemetry.io/service.name": "three"}}
    label = {"labels": {"app.kubernetes.io/name": "four", "app.kubernetes.io/instance": "release", "pod-template-hash": "7d4b9c"}}
    assert service([attributes, name], **annotation, **label) == "one"
    assert service([attributes], **annotation, **label) == "two"
    assert service([], **annotation, **label) == "three"
    assert service([], **label) == "four"
    assert service([]) == "chat"


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ([{"name": "A", "value": "x"}, {"name": "OTEL_SERVICE_NAME", "value": "$(A)-y"}], "x-y"),
        ([{"name": "OTEL_SERVICE_NAME", "value": "$$(A)"}], "$(A)"),
        ([{"name": "OTEL_SERVICE_NAME", "value": "$(LATER)"}, {"name": "LATER", "value": "x"}], "chat"),
        ([{"name": "OTEL_SERVICE_NAME", "value": "x-$(LATER)"}], "chat"),
        ([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c"}}}, {"name": "OTEL_SERVICE_NAME", "value": "$(A)"}], "chat"),
        ([{"name": "OTEL_SERVICE_NAME", "valueFrom": {"secretKeyRef": {"name": "s"}}}], "chat"),
        ([{"name": "OTEL_SERVICE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}}], "labelled"),
        ([{"name": "OTEL_SERVICE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}], "prod"),
        ([{"name": "OTEL_SERVICE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}], "10.0.0.7"),
        ([{"name": "OTEL_SERVICE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.managedFields"}}}], "chat"),
        ([{"name": "OTEL_SERVICE_NAME", "value": "a$5"}], "a$5"),
        (
            [{"name": "P", "valueFrom": {"resourceFieldRef": {}}}, {"name": "OTEL_RESOURCE_ATTRIBUTES", "value": "x=$(P),service.name=s"}],
            "s",
        ),
    ],
)
def test_variables_and_fields(env: list[dict[str, Any]], expected: str) -> None:
    """$(NAME) and fieldRef are resolved from the pod; what depends on a config map, a secret or a later name says nothing."""
    assert service(env, labels={"app": "labelled", "pod-template-hash": "7d4b9c"}) == expected


def test_a_static_pod_has_two_uids() -> None:
    """The mirror pod of a static pod is also found by the configuration hash that its cgroup is called after."""
    record = parse_pod(pod(annotations={"kubernetes.io/config.hash": "e" * 32}))
    assert record.uids == (UID, "e" * 32)


def test_a_list_counts_what_is_no_pod() -> None:
    """One broken item does not hide the others; an empty list may be written as null."""
    pods, bad = parse_pod_list(pod_list(pod(), {"metadata": {}}, {"metadata": {"name": 7, "uid": []}}))
    assert ([record.name for record in pods], bad) == (["chat-7d4b9c-x2x9z"], 2)
    assert parse_pod_list({"kind": "PodList", "items": None}) == ([], 0)


@pytest.mark.parametrize("value", [None, [], "x", 7, {}, {"kind": "Status", "items": []}, {"kind": "PodList", "items": {}}, {"items": []}])
def test_what_is_no_list_is_refused(value: object) -> None:
    """Another shape is an error, never an empty list: it would say that all pods are gone."""
    with pytest.raises(InputError):
        parse_pod_list(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("labels", "annotations", "ownerReferences", "creationTimestamp", "env", "containers", "containerStatuses", "spec", "status")


@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6))
def test_no_shape_breaks_it(parts: dict[str, Any]) -> None:
    """Whatever stands where a pod's parts should be, the pod is named or refused."""
    value = pod()
    for key, part in parts.items():
        for place in (value, value["metadata"], value.get("spec"), value.get("status")):
            if isinstance(place, dict) and key in place:
                place[key] = part
    record = parse_pod(value)
    assert record.identity(CONTAINER).pod == "chat-7d4b9c-x2x9z"
