"""The attributor's options for webhooks; secrets come from a file or the environment, never from the command line."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from libslo.errors import InputError

if TYPE_CHECKING:
    from libslo.export.webhook import WebhookSettings

__all__ = ["webhook_options"]

F = TypeVar("F", bound=Callable[..., Any])

_SECRET = "SLO_WEBHOOK_SECRET"  # noqa: S105 - the name of a variable
_SAID = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)  # toolkit.yaml is ParameterSource.DEFAULT_MAP


_NAMES = (
    "webhook", "webhook_receiver", "webhook_url", "webhook_secret_file", "webhook_timeout_s", "webhook_total_s", "webhook_forbid_private",
    "webhook_strict", "dead_letter", "webhook_replay",
)  # fmt: skip
_SWITCHES = ("webhook_receiver", "webhook_url", "webhook_replay")  # who says one of these wants it on


# fmt: off
_OPTIONS = (
    click.option("--webhook/--no-webhook", default=None, envvar="SLO_WEBHOOK",
                 help="Deliver incidents to a webhook.  [env: SLO_WEBHOOK; default: on when --webhook-url or --webhook-receiver is said"
                      " here or in the environment, else what webhook.enabled of toolkit.yaml says, else off]"),
    click.option("--webhook-receiver", type=click.Choice(["generic", "pagerduty", "opsgenie"]), default="generic", show_default=True,
                 envvar="SLO_WEBHOOK_RECEIVER", show_envvar=True,
                 help="Who is at the URL: anything that takes JSON (signed when there is a secret), PagerDuty Events v2, Opsgenie."),
    click.option("--webhook-url", metavar="URL", envvar="SLO_WEBHOOK_URL", show_envvar=True,
                 help="Where to; pagerduty and opsgenie have one of their own (in Europe: https://api.eu.opsgenie.com)."),
    click.option("--webhook-secret-file", metavar="FILE", envvar="SLO_WEBHOOK_SECRET_FILE",
                 help="Secrets to sign with, one a line, the current one first (whsec_BASE64, or any word); the routing key of pagerduty;"
                      " the API key of opsgenie.  [env: SLO_WEBHOOK_SECRET_FILE, or SLO_WEBHOOK_SECRET with the secrets themselves]"),
    click.option("--webhook-timeout", "webhook_timeout_s", metavar="SECONDS", type=click.IntRange(1, 300), default=5, show_default=True,
                 envvar="SLO_WEBHOOK_TIMEOUT", show_envvar=True, help="Of one attempt; there are three at most."),
    click.option("--webhook-total-timeout", "webhook_total_s", metavar="SECONDS", type=click.IntRange(1, 3600), default=60,
                 show_default=True, envvar="SLO_WEBHOOK_TOTAL_TIMEOUT", show_envvar=True,
                 help="Of all attempts of one delivery and the pauses between them, and of what is left at the end of the input."),
    click.option("--webhook-forbid-private", is_flag=True, envvar="SLO_WEBHOOK_FORBID_PRIVATE", show_envvar=True,
                 help="Connect to public addresses only: not to loopback, private or link-local ones, nor to cloud metadata; no proxies."),
    click.option("--webhook-strict", is_flag=True, envvar="SLO_WEBHOOK_STRICT", show_envvar=True,
                 help="Exit 1 in the end when a delivery failed."),
    click.option("--dead-letter", metavar="FILE", envvar="SLO_DEAD_LETTER", show_envvar=True,
                 help="Append what could not be delivered to this file, as JSON lines with the reason and without secrets."),
    click.option("--webhook-replay", metavar="FILE",
                 help="Read no input: send the letters that --dead-letter wrote again, under the same ids, and end. A trigger whose"
                      " resolve was delivered opens its incident anew: take such lines out first."),
)
# fmt: on


def webhook_options(command: F) -> F:
    """--webhook and what goes with it, handed over as `webhook`: WebhookSettings, or None when it is off."""

    @functools.wraps(command)
    def wrapper(**options: Any) -> Any:
        chosen = {name: options.pop(name) for name in _NAMES}
        return command(webhook=_settings(chosen) if _is_on(chosen["webhook"]) else None, **options)

    made: Any = wrapper
    for option in reversed(_OPTIONS):
        made = option(made)
    return made  # type: ignore[no-any-return]


def _is_said(name: str) -> bool:
    """Whether the option is on the command line or in the environment."""
    return click.get_current_context().get_parameter_source(name) in _SAID


def _is_on(webhook: bool | None) -> bool:
    if _is_said("webhook"):
        return bool(webhook)
    if any(map(_is_said, _SWITCHES)) or webhook:
        return True
    context = click.get_current_context()
    if any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in _NAMES):
        raise click.UsageError("webhook options without a webhook: --webhook-url says where to")
    return False


def _settings(chosen: dict[str, Any]) -> WebhookSettings:
    from libslo.export.webhook import WebhookSettings
    from libslo.export.webhook_delivery import RetryRule, Target

    if chosen["webhook_replay"] and chosen["webhook_replay"] == chosen["dead_letter"]:
        raise click.UsageError("--webhook-replay and --dead-letter are the same file: give --dead-letter another one")
    if chosen["dead_letter"] == "-":
        raise click.UsageError("--dead-letter takes a file: stdout is for incidents")
    return WebhookSettings(
        Target(chosen["webhook_receiver"], chosen["webhook_url"] or "", _secrets(chosen["webhook_secret_file"])),
        RetryRule(timeout_s=chosen["webhook_timeout_s"], total_s=chosen["webhook_total_s"]),
        forbid_private=chosen["webhook_forbid_private"],
        strict=chosen["webhook_strict"],
        dead_letter=chosen["dead_letter"],
        replay=chosen["webhook_replay"],
    )


def _secrets(path: str | None) -> tuple[bytes, ...]:
    """From the file of the command line, else from the environment, else from the file that toolkit.yaml names."""
    from libslo.export.webhook_signing import parse_secrets

    source = click.get_current_context().get_parameter_source("webhook_secret_file")
    text = os.environ.get(_SECRET, "")
    if text.strip() and source is ParameterSource.ENVIRONMENT:
        raise click.UsageError(f"{_SECRET} and {_SECRET}_FILE: one is enough")
    if text.strip() and source is not ParameterSource.COMMANDLINE:
        return parse_secrets(text, _SECRET)
    if not path:
        return ()
    try:
        return parse_secrets(Path(path).read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        reason = (getattr(error, "strerror", None) or "not a text").lower()
        raise InputError(f"cannot read the secrets: {reason}", source=path, hint="check the path and its permissions") from error
