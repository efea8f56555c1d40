"""The plots of a report as SVG, drawn by matplotlib without a display. Same data, same bytes.

Every drawing is given back as one <svg> element that may stand in an HTML page beside the others: its ids carry its name, and it
names nothing outside itself.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from libslo.bench.material import Answer, Timeline
from libslo.calibration import reliability, risk_coverage
from libslo.evaluation import CLASSES, COVERAGES, Prediction, confidences, confusion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_all", "thinned"]

_BLUE, _RED, _GREY, _AMBER = "#1f5fa8", "#b3261e", "#6b7280", "#f4d58d"
_MOST_DOTS = 200  # of one line or row
_STYLE: dict[str, Any] = {
    "svg.hashsalt": "benchgen",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.dpi": 100,
}


def draw_all(answers: Sequence[Answer], ece: dict[str, Any], timelines: Sequence[Timeline]) -> dict[str, str]:
    """Name to SVG. ece: the calibration figures of the summary. CannotError without matplotlib."""
    predictions = [each.prediction for each in answers]
    drawings: dict[str, Callable[[Figure], None]] = {
        "confusion": lambda figure: _confusion(figure, predictions),
        "reliability": lambda figure: _reliability(figure, predictions, ece),
        "delay": lambda figure: _delay(figure, predictions),
        "risk-coverage": lambda figure: _risk_coverage(figure, predictions),
    }
    for timeline in timelines:
        drawings[f"timeline-{timeline.domain}"] = lambda figure, timeline=timeline: _timeline(figure, timeline)  # type: ignore[misc]
    return {name: _svg(name, draw) for name, draw in drawings.items()}


def _svg(name: str, draw: Callable[[Figure], None]) -> str:
    from libslo.errors import CannotError

    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CannotError("the plots of a report need matplotlib", hint="pip install 'llm-slo-ebpf-toolkit[report]'") from error
    style: Any = {**matplotlib.rcParamsDefault, **_STYLE, "backend": "agg"}
    with matplotlib.rc_context(style):
        figure = Figure(layout="constrained")
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _alone(name, file.getvalue())


def _alone(name: str, text: str) -> str:
    """The <svg> element of a file, with ids of its own and without prolog and namespaces, which HTML does not need."""
    text = text[text.index("<svg") :]
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 role="img" aria-label="{name}"', text, count=1).strip()


def _nothing(figure: Figure, what: str) -> None:
    figure.set_size_inches(6.4, 1.2)
    figure.text(0.5, 0.5, what, ha="center", va="center", color=_GREY)


def _confusion(figure: Figure, predictions: Sequence[Prediction]) -> None:
    rows = confusion(predictions)
    if not rows:
        return _nothing(figure, "nothing was predicted")
    import numpy as np

    actual = sorted({row[0] for row in rows}, key=lambda name: (name == "none", "+" in name, *(_place(part) for part in name.split("+"))))
    table = np.zeros((len(actual), len(CLASSES)))
    for name, predicted, count in rows:
        table[actual.index(name), CLASSES.index(predicted)] = count
    shares = table / table.sum(axis=1, keepdims=True)
    figure.set_size_inches(8.2, 1.9 + 0.36 * len(actual))
    axes = figure.add_subplot()
    right = np.array([[_is_right(name, domain) for domain in CLASSES] for name in actual])
    for truth, colours in ((right, "Blues"), (~right, "Reds")):
        axes.imshow(np.ma.masked_where(~truth | (table == 0), shares), cmap=colours, vmin=-0.1, vmax=1.25, aspect="auto")
    for y, x in np.argwhere(table):
        colour = "white" if shares[y, x] > 0.55 else "black"
        axes.text(x, y, f"{table[y, x]:.0f}", ha="center", va="center", color=colour, fontweight="bold")
    labels = [f"{name.replace('+', ' + ')} ({table[i].sum():.0f})" for i, name in enumerate(actual)]
    axes.set_yticks(range(len(actual)), labels)
    axes.set_xticks(range(len(CLASSES)), CLASSES, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_xticks(np.arange(-0.5, len(CLASSES)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(actual)), minor=True)
    axes.grid(which="minor", color="#d7dbe0", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.set(xlabel="said", ylabel="was true (cases)", title="Confusion: wrong answers in red")
    return None


def _is_right(actual: str, said: str) -> bool:
    return said == "unknown" if actual == "none" else said in actual.split("+")


def _place(domain: str) -> int:
    return CLASSES.index(domain) if domain in CLASSES else len(CLASSES)


def _reliability(figure: Figure, predictions: Sequence[Prediction], ece: dict[str, Any]) -> None:
    bins = [each for each in reliability(*confidences(predictions)) if each.right.n]
    if not bins:
        return _nothing(figure, "no fault was answered")
    figure.set_size_inches(5.6, 5.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    upper.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1, label="perfect")
    x, y = [each.confidence or 0.0 for each in bins], [each.right.share or 0.0 for each in bins]
    reach = [each.right.wilson95 for each in bins]
    spread = [[at - low for at, (low, _) in zip(y, reach, strict=True)], [high - at for at, (_, high) in zip(y, reach, strict=True)]]
    upper.errorbar(x, y, yerr=spread, fmt="o", color=_BLUE, capsize=3, markersize=5, label="answers (Wilson 95 %)")
    band = ece["ece_of_perfect95"]
    said = f"ECE {ece['ece']['value']:.3f}; a perfect one shows {band[0]:.3f} to {band[1]:.3f} here"
    upper.set(xlim=(0, 1.02), ylim=(0, 1.04), ylabel="share right", title=said)
    upper.legend(loc="upper right", bbox_to_anchor=(1, -0.03), ncols=2, frameon=False)
    lower.bar([(each.low + each.high) / 2 for each in bins], [each.right.n for each in bins], width=0.09, color=_BLUE)
    for each in bins:
        lower.annotate(
            str(each.right.n),
            ((each.low + each.high) / 2, each.right.n),
            ha="center",
            va="bottom",
            xytext=(0, 1),
            textcoords="offset points",
        )
    lower.margins(y=0.3)
    lower.set(xlabel="confidence", ylabel="answers")
    return None


def _delay(figure: Figure, predictions: Sequence[Prediction]) -> None:
    known = [each for each in predictions if each.delay_s is not None and each.actual]
    groups = [(name, sorted(each.delay_s or 0.0 for each in known if "+".join(sorted(each.actual)) == name)) for name in _groups(known)]
    if not groups:
        return _nothing(figure, "no delay is known")
    import numpy as np

    figure.set_size_inches(7.6, 1.4 + 0.38 * len(groups))
    axes = figure.add_subplot()
    everything = [value for _, values in groups for value in values]
    for y, (_, values) in enumerate(groups):
        shown = thinned(values)
        axes.plot(shown, [y] * len(shown), "o", color=_BLUE, alpha=0.55, markersize=5, markeredgewidth=0)
        axes.plot([float(np.median(values))] * 2, [y - 0.32, y + 0.32], color=_RED, linewidth=2)
    median = float(np.median(everything))
    axes.axvline(median, color=_GREY, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(groups)), [f"{name.replace('+', ' + ')} ({len(values)})" for name, values in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlim(0, max(everything) * 1.05 or 1)
    axes.set(
        xlabel="s from the fault's begin to its detection",
        title=f"Detection delay: medians in red, of all {median:.2f} s (n = {len(everything)})",
    )
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    return None


def thinned(values: list[float]) -> list[float]:
    """Of many sorted values some evenly spaced ones, the least and the most among them."""
    if len(values) <= _MOST_DOTS:
        return values
    return [values[i * (len(values) - 1) // (_MOST_DOTS - 1)] for i in range(_MOST_DOTS)]


def _groups(predictions: Sequence[Prediction]) -> list[str]:
    names = {"+".join(sorted(each.actual)) for each in predictions}
    return sorted(names, key=lambda name: ("+" in name, *(_place(part) for part in name.split("+"))))


def _risk_coverage(figure: Figure, predictions: Sequence[Prediction]) -> None:
    curve = risk_coverage(*confidences(predictions))
    if not curve:
        return _nothing(figure, "no fault was answered")
    figure.set_size_inches(5.6, 3.6)
    axes = figure.add_subplot()
    x, y = [each.coverage for each in curve], [each.right.share or 0.0 for each in curve]
    bounds = [each.right.wilson95 for each in curve]
    axes.fill_between(
        x, [low for low, _ in bounds], [high for _, high in bounds], color=_BLUE, alpha=0.15, linewidth=0, label="Wilson 95 %"
    )
    axes.plot(x, y, "-" if len(x) > _MOST_DOTS else "-o", color=_BLUE, markersize=3, linewidth=1.4, label="accuracy")
    for coverage in COVERAGES:
        axes.axvline(coverage, color=_GREY, linestyle=":", linewidth=1)
    least = min(low for low, _ in bounds)
    axes.set(xlim=(0, 1.02), ylim=(max(least - 0.05, 0), 1.01))
    axes.set(xlabel="share of answers kept, the surest first", ylabel="share right", title="Accuracy among the surer answers")
    axes.legend(loc="upper right", bbox_to_anchor=(1, -0.17), ncols=2, frameon=False)
    return None


def _timeline(figure: Figure, timeline: Timeline) -> None:
    figure.set_size_inches(7.6, 0.9 + 1.15 * len(timeline.series))
    panels = figure.subplots(len(timeline.series), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (signal, unit, values) in zip(panels, timeline.series, strict=True):
        drawn = [float("nan") if value is None else value for value in values]  # a gap where nothing was seen
        panel.axvspan(0, timeline.ends_s or timeline.t_s[-1], color=_AMBER, alpha=0.45, linewidth=0)
        panel.plot(timeline.t_s, drawn, "-o", color=_BLUE, markersize=3, linewidth=1.3)
        if timeline.detected_s is not None:
            panel.axvline(timeline.detected_s, color=_RED, linewidth=1.5)
        panel.set_title(f"{signal}  ({unit})", fontsize=9.5, fontweight="normal")
        panel.margins(x=0.01)
        panel.set_ylim(0, 1.2 * max((value for value in values if value is not None), default=0) or 1)
        panel.locator_params(axis="y", nbins=4)
        panel.locator_params(axis="x", steps=[1, 2, 5, 10])
    detected = "" if timeline.detected_s is None else f", red: detected after {timeline.detected_s:.1f} s"
    panels[-1].set_xlabel("s from the fault's begin")
    figure.suptitle(f"{timeline.domain}: shaded while the fault was on{detected}", x=0.01, ha="left", fontsize=10.5, fontweight="bold")
