"""What the attributor does: read records, raise incidents, deliver them, and account for itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from libslo.answers import Incident
from libslo.attribution import attribute_bayes, attribute_rule, largest_change, load_model
from libslo.contracts import OTLP_SPANS
from libslo.errors import InputError
from libslo.files import write_file
from libslo.incidents import IncidentEngine, IncidentSettings
from libslo.jsonl import JsonlWriter, OnBad, ReadStats, Stopper, read_jsonl
from libslo.labels import LabelBook
from libslo.sample_judge import SampleJudge
from libslo.samples import sample_fault
from libslo.signals import slis
from libslo.slo import burn_policy, parse_objective
from libslo.spans import decode_spans

if TYPE_CHECKING:
    from libslo.evaluation import Prediction
    from libslo.explain import Explanation
    from libslo.export.webhook import WebhookSettings

__all__ = ["AttributeSettings", "attribute", "incident_settings"]

_SEED = 42  # of the intervals in --summary-out
_CONSUMES = ("slo-event", "probe-event", OTLP_SPANS, "agent-report", "stream-time", "fault-sample")


@dataclass(frozen=True)
class AttributeSettings:
    """What the attributor was asked to do. update_interval_s: None says every incident once."""

    source: str = "-"
    out: str = "-"
    mode: Literal["bayes", "rule"] = "bayes"
    model: str | None = None
    abstain_below: float = 0.5
    burn_policy: str = "lab"
    objectives: tuple[str, ...] = ()
    lateness_ms: float | None = None  # None: what the burn policy says
    baseline_s: float = 60.0
    settle_ms: float = 1500.0
    update_interval_s: float | None = None
    explain: bool = False
    explain_out: str | None = None
    summary_out: str | None = None
    confusion_out: str | None = None
    episodes_out: str | None = None
    otlp_endpoint: str | None = None
    webhook: WebhookSettings | None = None
    pass_through: bool = False
    on_bad: OnBad = "fail"


def incident_settings(settings: AttributeSettings) -> IncidentSettings:
    """Objectives and policy by name, and the attribution mode as a function of evidence. InputError for what is wrong."""
    objectives = {name: s.objective for name, s in slis().items() if s.objective}
    objectives.update(parse_objective(text) for text in settings.objectives)
    if settings.mode == "rule":
        decide = attribute_rule
    else:
        model = load_model(settings.model)

        def decide(evidence: Any) -> Any:
            return attribute_bayes(evidence, model, settings.abstain_below)

    policy = burn_policy(settings.burn_policy)
    lateness_ms = policy.lateness_ms if settings.lateness_ms is None else settings.lateness_ms
    return IncidentSettings(
        policy,
        objectives,
        decide,
        lateness_ns=int(lateness_ms * 1e6),
        baseline_ns=int(settings.baseline_s * 1e9),
        settle_ns=int(settings.settle_ms * 1e6),
        update_interval_ns=None if settings.update_interval_s is None else int(settings.update_interval_s * 1e9),
    )


def attribute(
    settings: AttributeSettings,
    note: Callable[[str], None],
    report: Callable[[InputError], None],
    tell: Callable[[Explanation], None] = lambda _: None,
    alarm: Callable[[str], None] | None = None,
) -> bool:
    """Run the attributor until its input ends. False when a webhook failed and that counts.

    tell: shows a person what `settings.explain` asks for. alarm: gets, from any thread, what could not be delivered (default: note).
    """
    rules = incident_settings(settings)
    if settings.webhook is not None and settings.webhook.replay:
        from libslo.export.webhook import replay_letters

        return replay_letters(settings.webhook, settings.webhook.replay, note, alarm or note)
    delivery: _Delivery | None = None
    try:
        with ExitStack() as stack:
            delivery = _Delivery(settings, stack, note, tell, alarm or note)
            _attribute(settings, rules, IncidentEngine(rules, delivery.say_episode), delivery, note, report)
    except BrokenPipeError:
        if delivery is None or not delivery.failed:
            raise
    return not delivery.failed


class _Delivery:
    """Where incidents go: lines, OTLP, webhooks, a person. `last` keeps what was said last of each, when it is wanted."""

    def __init__(
        self,
        settings: AttributeSettings,
        stack: ExitStack,
        note: Callable[[str], None],
        tell: Callable[[Explanation], None],
        alarm: Callable[[str], None],
    ) -> None:
        self._settings, self._note, self._tell = settings, note, tell
        self._webhook = None
        if settings.webhook is not None:
            from libslo.export.webhook import IncidentWebhook

            self._webhook = IncidentWebhook(settings.webhook, note, alarm)

        def lines(path: str | None) -> JsonlWriter | None:
            return stack.enter_context(JsonlWriter(path, (settings.source,))) if path else None

        self._episodes = lines(settings.episodes_out)
        self._writer = stack.enter_context(JsonlWriter(settings.out, (settings.source,)))
        self._explained = lines(settings.explain_out)
        self._keeps = bool(settings.summary_out or settings.confusion_out)
        self._exporter = None
        if settings.otlp_endpoint:
            from libslo.export.otlp_logs import OtlpLogExporter

            self._exporter = OtlpLogExporter(settings.otlp_endpoint)
        self.last: dict[str, Incident] = {}
        self.incidents = self.updates = 0
        self.failed = False  # a webhook, and that counts

    def say(self, incident: Incident) -> None:
        """Deliver one incident or an update of it."""
        self.updates += bool(incident.changes)
        self.incidents += not incident.changes
        if self._keeps:
            self.last[incident.value["incident_id"]] = incident
        if self._exporter is not None:
            self._exporter.submit("incident-attribution", incident.value)
        if self._webhook is not None:
            self._webhook.submit_incident(incident.value)
        self._writer.write(incident.value)
        self._writer.flush()  # the reader may have gone: who is on call was told before
        self._explain(incident)

    def _explain(self, incident: Incident) -> None:
        if self._settings.explain or self._explained is not None:
            from libslo.explain import explain, plain_lines

            explanation = explain(incident)
            if self._explained is not None:
                self._explained.write_line("\n".join([*plain_lines(explanation), "", ""]).encode())
                self._explained.flush()
            if self._settings.explain:
                self._tell(explanation)
        if not self._settings.explain:
            self._note(_sentence(incident))

    def say_episode(self, episode: dict[str, Any]) -> None:
        """Deliver what is known of an episode: it is open, or over."""
        if self._webhook is not None:
            self._webhook.submit_episode(episode)
        if self._episodes is not None:
            self._episodes.write(episode)
            self._episodes.flush()

    def pass_on(self, line: bytes) -> None:
        """A line of the input that is not for us."""
        self._writer.write_line(line)

    def close(self, stopped: Callable[[], bool]) -> None:
        """Send what waits, and say what became of it."""
        if self._webhook is not None:
            self.failed = not self._webhook.close(stopped)
        if self._exporter is not None:
            account = self._exporter.close()
            self._note(f"otlp logs: {account}")


def _attribute(
    settings: AttributeSettings,
    rules: IncidentSettings,
    engine: IncidentEngine,
    delivery: _Delivery,
    note: Callable[[str], None],
    report: Callable[[InputError], None],
) -> None:
    labels, stats, samples = LabelBook(), ReadStats(), SampleJudge(rules)
    evaluating = bool(settings.summary_out or settings.confusion_out)
    stop = Stopper()
    try:
        stop.on_signals()
        convert = {OTLP_SPANS: lambda value: list(decode_spans(value))}
        for records in read_jsonl(
            settings.source, _CONSUMES, on_bad=settings.on_bad, report=report, stats=stats, convert=convert, stop=stop
        ):
            for kind, value, raw, line in records:
                if kind == "fault-sample":
                    if wrong := sample_fault(value):
                        _refuse(settings, wrong, line, report)
                        stats.bad += 1
                        continue
                    if (raised := samples.feed(value)) is not None:
                        delivery.say(raised)
                    if evaluating:
                        labels.note_sample(value)
                    continue
                if kind == "":
                    if settings.pass_through:
                        delivery.pass_on(raw + b"\n")
                    continue
                for incident in engine.feed(kind, value):
                    delivery.say(incident)
                if evaluating and kind == "slo-event":
                    labels.note(value)
        _finish(engine, delivery)
    except InputError:
        _finish(engine, delivery)  # the good lines before the bad one are answered
        raise
    finally:
        delivery.close(lambda: stop.stopped)
    left_out = "" if settings.pass_through else " and left out"
    updates = f", {delivery.updates} updates" if settings.update_interval_s is not None else ""
    note(f"{stats.lines} lines in, {stats.bad} bad, {stats.unknown} not for us{left_out}; {delivery.incidents} incidents{updates}")
    if engine.late:
        note(f"{engine.late} slo-events came too late to count; try a larger --lateness-ms")
    if engine.unowned:
        note(f"{engine.unowned} signals belong to no service and were not used")
    if engine.stragglers:
        note(f"{engine.stragglers} slo-events of requests that began in an episode came after it was closed and opened no new one")
    if engine.clock_steps:
        note(f"a service's clock went back {engine.clock_steps} times: its history was dropped each time")
    _evaluate(settings, labels, list(delivery.last.values()))


def _refuse(settings: AttributeSettings, wrong: str, line: int, report: Callable[[InputError], None]) -> None:
    """Report a sample that keeps its schema and is wrong all the same, or end the run with it."""
    source = "stdin" if settings.source == "-" else settings.source
    if settings.on_bad == "fail":
        raise InputError(wrong, source=source, line=line, hint="fix the line, or go on without it: --on-bad skip")
    report(InputError(wrong, source=source, line=line))


def _sentence(incident: Incident) -> str:
    value, verdict = incident.value, incident.verdict
    first = verdict.hypotheses[0] if verdict.hypotheses and verdict.domain == verdict.hypotheses[0].domain else None
    because = f" because of {', '.join(first.evidence)}" if first and first.evidence else ""
    news = f" [update of {value['incident_id']}: {'; '.join(incident.changes)}]" if incident.changes else ""
    return f"{value['timestamp']} {value['service']}: {verdict.domain} ({verdict.confidence:.2f}){because}{news}"


def _finish(engine: IncidentEngine, delivery: _Delivery) -> None:
    for incident in engine.finish():
        delivery.say(incident)


def _evaluate(settings: AttributeSettings, labels: LabelBook, raised: list[Incident]) -> None:
    if not (settings.summary_out or settings.confusion_out):
        return
    if settings.confusion_out and not labels.labelled:
        raise InputError("the input has no fault labels to compare with", hint="leave out --confusion-out, or give labelled input")
    from libslo.evaluation import confusion, summarize

    predictions = [_prediction(labels, incident) for incident in raised] if labels.labelled else []
    if settings.summary_out:
        import numpy as np
        import orjson

        summary = summarize(predictions, np.random.default_rng(_SEED)) if labels.labelled else {}
        value = {"incidents": len(raised), "labelled": labels.labelled, **summary}
        write_file(settings.summary_out, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    if settings.confusion_out:
        rows = "".join(f"{actual},{predicted},{count}\n" for actual, predicted, count in confusion(predictions))
        write_file(settings.confusion_out, ("actual,predicted,count\n" + rows).encode())


def _prediction(labels: LabelBook, incident: Incident) -> Prediction:
    """What an incident said beside what the labels of its window say."""
    from libslo.evaluation import Prediction
    from libslo.scenarios import expected_domains

    value, verdict = incident.value, incident.verdict
    label = labels.label(value["service"], incident.onset_unix_ns, incident.detected_unix_ns)
    posteriors = {each.domain: each.posterior for each in verdict.hypotheses}
    return Prediction(
        case=value["incident_id"],
        actual=expected_domains(label),
        predicted=verdict.domain,
        posteriors=posteriors,
        ranking=tuple(posteriors),
        largest_z=largest_change(incident.evidence),
        delay_s=None,
        synthetic=value["cluster"] == "synthetic",
    )
