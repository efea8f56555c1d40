"""docs/compatibility.md out of the results of the matrix. Pure: records in, text out.

A cell is never blank: it says what was measured, or has the number of a note that says why not.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

SETS = {
    "all": "all",
    "needed": "BPF, PERFMON, NET_ADMIN",
    "tracing": "BPF, PERFMON",
    "none": "none",
    "no_btf": "all, BTF hidden",
}
_PLACE = ("version", "lockdown", "capabilities", "signal", "variant")
ORDER = {"measured": 0, "wrong": 1, "attached, nothing seen": 2, "workload failed": 3, "no workload": 4, "refused": 5, "skipped": 6}

# What the errno of a refusal means where the kernel says nothing more; the first line whose test holds is the reason.
_SINCE = {"block_io": "there is no block_io_start before Linux 6.5"}


def reason_of(row: Row) -> str:
    """Why a cell is not `measured`, in one sentence; "" for one that is."""
    result, said, number = row["result"], str(row.get("reason", "")), row.get("errno")
    if result == "measured":
        return ""
    if result == "wrong":
        return f"attached, but {row.get('seen')} of {row.get('known')} {row.get('unit', '')}: {row.get('detail')}"
    if result == "attached, nothing seen":
        return f"attached, and nothing was seen of {row.get('known')}"
    if result != "refused":
        return f"{result}: {said}"
    return _refusal(row, said, number)


def _refusal(row: Row, said: str, number: int | None) -> str:
    tail = str(row.get("verifier_tail", ""))
    hidden = row.get("capabilities") == "no_btf"
    refused = number in (errno.EPERM, errno.EACCES)
    if row.get("missing"):  # of those that the catalogue says it needs
        return f"needs {' and '.join(row['missing'])}"
    if hidden and ("no BTF" in said or number in (errno.ESRCH, errno.ENOENT)):
        return "needs the kernel's types (BTF)"
    if "bpf_probe_read" in tail and row.get("lockdown") == "confidentiality":
        return "lockdown confidentiality forbids bpf_probe_read_kernel"
    if number == errno.ESRCH and row["variant"] in _SINCE:
        return _SINCE[row["variant"]]
    if number in (errno.ESRCH, errno.ENOENT):
        return f"the kernel has no such hook ({_errno(number)}: {said})"
    if number in (errno.E2BIG, errno.ENOSPC) and said.startswith("load"):
        return f"the kernel's verifier gives up: too many instructions to walk, or its log is full ({_errno(number)})"
    if number == errno.EACCES and said.startswith("attach") and row.get("perf_event_paranoid", 0) > 2 and _dropped(row):
        return "needs CAP_SYS_ADMIN where kernel.perf_event_paranoid is 3, as it is on Debian (EACCES when it is attached)"
    if refused and not tail and said.startswith("load"):
        return f"this kernel refuses programs of this kind ({_errno(number)} at load, and an empty verifier log)"
    if refused and row.get("lockdown") == "confidentiality":
        return f"refused under lockdown confidentiality ({_errno(number)}: {said})"
    if refused:
        return f"the kernel refuses it whatever is held ({_errno(number)}: {said})"
    return f"{_errno(number)}: {said}" if number else said or "refused without a word"


def _dropped(row: Row) -> bool:
    return row.get("capabilities") not in ("all", "no_btf")


def _errno(number: int | None) -> str:
    return errno.errorcode.get(number, str(number)) if number else "no errno"


def _cell(rows: Sequence[Row], notes: dict[str, int], *, with_variant: bool) -> str:
    """The best of several rows for one place of a table."""
    if not rows:
        return f"[{_number(notes, 'not tried in this run')}]"
    best = min(rows, key=lambda row: ORDER[row["result"]])  # of equals the first: the catalogue's order
    if best["result"] == "measured":
        count = f"{best['seen']}/{best['known']} {best['unit']}".rstrip()
        return f"{best['variant']} {count}" if with_variant else f"measured {count}"
    numbers = dict.fromkeys(_number(notes, reason_of(row)) for row in rows)
    word = {"wrong": "**wrong**", "attached, nothing seen": "**nothing seen**", "refused": "-", "skipped": "skipped"}
    return f"{word.get(best['result'], best['result'])} [{', '.join(map(str, numbers))}]"


def _number(notes: dict[str, int], text: str) -> int:
    return notes.setdefault(text, len(notes) + 1)


def _kernels(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["version"] for row in rows))


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(line) + " |" for line in lines), ""]


def page(run: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The page. rows: the results.

    run: {"made": date, "machines": [{"version", "kernel", "package" and "skipped" if any}], "workloads": {signal: sentence}}.
    """
    notes: dict[str, int] = {}
    signals = list(run["workloads"])
    sets = [name for name in SETS if any(row["capabilities"] == name for row in rows)] or list(SETS)
    tried = [row for row in rows if "signal" in row]
    out = [
        "# What works where",
        "",
        "Every variant of every signal, loaded on real kernels under each set of capabilities, next to a workload that is known:",
        "`variant 23/23` attached and saw 23 of 23. What is not measured has a number, and the number a reason below.",
        "",
        f"Made by `make kernel-matrix` on {run['made']} from `testdata/kernel-matrix.jsonl`; nothing here is written by hand.",
        "",
        *_machines(run, rows),
        "Sets of capabilities, of a process with user id 0 that can gain no others:",
        "all that the machine gives; CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; CAP_BPF and CAP_PERFMON; none;",
        "and all of them while nothing is at `/sys/kernel/btf`, as on a kernel without BTF.",
        "The lockdown of a guest is raised from step to step while it runs.",
        "",
        "## Summary",
        "",
    ]
    for machine in run["machines"]:
        version = machine["version"]
        here = [row for row in tried if row["version"] == version]
        if not here:
            why = (
                machine.get("skipped")
                or machine.get("failed")
                or next((row["reason"] for row in rows if row["version"] == version), "no result")
            )
            out += [f"### {_title(machine)}", "", f"Not tried: {why}", ""]
            continue
        for level in dict.fromkeys(row["lockdown"] for row in here):
            out += [f"### {_title(machine)}, lockdown {level}", ""]
            now = [row for row in here if row["lockdown"] == level]
            lines = [
                [f"`{signal}`", *(_cell(_pick(now, signal=signal, capabilities=name), notes, with_variant=True) for name in sets)]
                for signal in signals
            ]
            out += _table(["signal", *(SETS[name] for name in sets)], lines)
    out += ["## Variants", ""]
    for signal, variant in dict.fromkeys((row["signal"], row["variant"]) for row in tried):
        out += [f"### {signal}: {variant}", "", f"{run['workloads'].get(signal, 'No workload')}.", ""]
        lines = []
        mine = _pick(tried, signal=signal, variant=variant)
        for version, level in dict.fromkeys((row["version"], row["lockdown"]) for row in mine):
            now = _pick(mine, version=version, lockdown=level)
            seen = next((row["detail"] + _first_try(now) for row in now if row["result"] == "measured"), "")
            lines.append([version, level, *(_cell(_pick(now, capabilities=name), notes, with_variant=False) for name in sets), seen or "-"])
        out += _table(["kernel", "lockdown", *(SETS[name] for name in sets), "what was seen"], lines)
    skipped = dict.fromkeys(f"{row['version']}, set {SETS[row['capabilities']]}: {row['reason']}" for row in rows if "signal" not in row)
    out += ["## Reasons", "", *(f"{number}. {text}" for text, number in notes.items()), *(f"- {text}" for text in skipped), ""]
    return "\n".join(out).rstrip() + "\n"


def _title(machine: Mapping[str, Any]) -> str:
    return f"Linux {machine['version']}" if machine["version"] != "host" else f"This machine, Linux {machine.get('kernel', '?')}"


def _first_try(rows: Sequence[Row]) -> str:
    """What was not right before it was tried again."""
    tried = [(row["capabilities"], row["first_try"]) for row in rows if "first_try" in row]
    return "".join(f"; first try with {SETS[name]}: {told['result']}, {told.get('seen')} of {told.get('known')}" for name, told in tried)


def _machines(run: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    lines = []
    for machine in run["machines"]:
        here: Row = next((row for row in rows if row["version"] == machine["version"]), {})
        settings = [str(here.get(name, "-")) for name in ("perf_event_paranoid", "unprivileged_bpf_disabled")]
        package = machine.get("package", "the machine's own")
        lines.append(
            [machine["version"], machine.get("kernel", "-"), package, *settings, machine.get("skipped") or machine.get("failed") or "tried"]
        )
    return _table(["kernel", "release", "package", "perf_event_paranoid", "unprivileged_bpf_disabled", "this run"], lines)


def _pick(rows: Sequence[Row], **wanted: str) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def unsound(now: Sequence[Row]) -> list[str]:
    """Cells that attached and did not see what happened, or that nothing was tried with, one line each."""
    return [
        f"{' '.join(str(row[name]) for name in _PLACE)}: {row['result']}: {reason_of(row)}"
        for row in now
        if "signal" in row and row["result"] in ("wrong", "attached, nothing seen", "workload failed", "no workload")
    ]


def lost(before: Sequence[Row], now: Sequence[Row], releases: Mapping[str, tuple[str, str]]) -> list[str]:
    """Cells that were measured before and were tried now without being measured, one line each.

    releases: version -> (release before, release now): the host is compared only with the same kernel.
    """

    def place(row: Row) -> tuple[str, ...]:
        return tuple(row[name] for name in _PLACE)

    had = {place(row) for row in before if row["result"] == "measured"}
    other = {version for version, (then, current) in releases.items() if version == "host" and then != current}
    return [
        f"{' '.join(place(row))}: {row['result']}: {reason_of(row)}"
        for row in now
        if "signal" in row and row["result"] != "measured" and row["version"] not in other and place(row) in had
    ]
