"""toolkit.yaml: validated against its schema, turned into defaults for options.

Precedence: option > environment ``SLO_*`` > file > default; click keeps it, this module only fills its third place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from libslo.contracts import explain, schema_validator
from libslo.errors import InputError
from libslo.resources import data_path

__all__ = ["OPTION_KEYS", "config_schema", "load_config", "option_defaults"]

# Option (the name of its parameter) -> place in the file. An option of the same name means the same in every tool.
OPTION_KEYS = {
    "signals": "signal_set.enabled",
    "signal_set": "signal_set.name",
    "disable_signals": "signal_set.disabled",
    "min_latency_ms": "signal_set.min_latency_ms",
    "mode": "signal_set.capability_mode",
    "rate_limit": "sampling.events_per_second_limit",
    "burst_limit": "sampling.burst_limit",
    "signal_rate_limit": "sampling.signal_events_per_second_limit",
    "histogram_interval_s": "sampling.histogram_interval_s",
    "names": "privacy.names",
    "max_overhead_pct": "safety.max_overhead_pct",
    "drop_capabilities": "safety.drop_capabilities",
    "window_ms": "correlation.window_ms",
    "lateness_ms": "correlation.lateness_ms",
    "otlp_endpoint": "otlp.endpoint",
    "otlp_listen": "otlp.listen",
    "otlp_interval_s": "otlp.interval_s",
    "metrics_listen": "metrics.listen",
    "metrics_max_series": "metrics.max_series",
    "cluster": "identity.cluster",
    "kubelet": "identity.kubelet",
    "kube_api": "identity.kube_api",
    "kube_token": "identity.kube_token",
    "kube_ca": "identity.kube_ca",
    "kube_insecure": "identity.kube_insecure",
    "node_name": "identity.node_name",
    "load_service": "slo.load_service",
    "burn_policy": "slo.burn_policy",
    "slo": "slo.objectives",
    "webhook": "webhook.enabled",
    "webhook_receiver": "webhook.receiver",
    "webhook_url": "webhook.url",
    "webhook_secret_file": "webhook.secret_file",
    "webhook_timeout_s": "webhook.timeout_s",
    "webhook_total_s": "webhook.total_timeout_s",
    "webhook_forbid_private": "webhook.forbid_private",
    "webhook_strict": "webhook.strict",
    "dead_letter": "webhook.dead_letter",
}


@cache
def config_schema() -> dict[str, Any]:
    """The schema of toolkit.yaml."""
    import orjson

    schema: dict[str, Any] = orjson.loads(data_path("contracts/config/v1alpha1/toolkit.schema.json").read_bytes())
    return schema


def load_config(path: str) -> dict[str, Any]:
    """Read and check a toolkit.yaml. InputError names the file, the line where YAML breaks, or the path of the wrong key."""
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise InputError(f"cannot read the configuration: {reason}", source=path, hint="check --config or SLO_CONFIG") from error
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise InputError(
            f"not YAML: {getattr(error, 'problem', None) or error}",
            source=path,
            line=mark.line + 1 if mark else None,
            hint="check the indentation of that line",
        ) from error
    value = {} if value is None else value
    for place, fact in _not_json(value, ""):
        raise InputError(
            f"{place}: {fact}" if place else fact,
            source=path,
            hint="keys are texts; values are texts, finite numbers, true or false, lists",
        )
    if not schema_validator(config_schema())(value):
        raise InputError(
            explain(value, config_schema()) or "the schema refuses it",
            source=path,
            hint="the keys are in contracts/config/v1alpha1/toolkit.schema.json",
        )
    return dict(value)


def _not_json(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """What YAML can say and JSON cannot, with its place."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield place, f"the key {key!r} is not a text"
            else:
                yield from _not_json(item, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _not_json(item, f"{place}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield place, f"{value} is not a finite number"
    elif not isinstance(value, str | int | float | bool | None):
        yield place, f"{value} is a {type(value).__name__}"


def _as_option(option: str, value: Any) -> Any:
    if option in ("signals", "disable_signals"):
        return ",".join(value)
    if option == "min_latency_ms":
        return list(value.items()) if isinstance(value, dict) else [("", value)]
    return value


def option_defaults(config: dict[str, Any], options: Iterable[str | None]) -> dict[str, Any]:
    """The defaults that a configuration gives to these options; lists become comma lists where options take those."""
    defaults = {}
    for option in options:
        found: Any = config
        for key in OPTION_KEYS.get(option or "", "?").split("."):
            found = found.get(key) if isinstance(found, dict) else None
        if found is not None and option:
            defaults[option] = _as_option(option, found)
    return defaults
