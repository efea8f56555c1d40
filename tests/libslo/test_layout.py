"""The shape of the project: imports go one way, the middle is pure, help is cheap, and every tool has its four places."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from builders import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS: dict[str, str] = PROJECT["project"]["scripts"]

# What each module of the core may import of the core: the rows above it, and what is named beside it of its own row.
# contracts → jsonl → signals, spans → correlation → slo → attribution → export, gates
ORDER: tuple[tuple[str, ...], ...] = (
    ("host",),
    ("errors",),
    ("resources",),
    ("contracts",),
    ("jsonl", "config"),
    ("files",),
    ("cli",),
    ("signals", "statistics", "clock"),
    ("spans", "scenarios", "estimates"),
    ("calibration", "usage"),
    ("correlation",),
    ("slo",),
    ("labels",),
    ("join", "load_slis", "evidence", "verdicts", "synthetic", "otlp", "episodes", "recordings"),
    ("attribution", "samples"),
    ("answers",),
    ("service_state",),
    ("incidents",),
    ("sample_judge",),
    ("evaluation", "detection", "explain"),
    ("export", "export.agent_state", "export.otlp_http"),
    ("export.counting", "export.otlp_logs", "export.webhook_signing", "export.webhook_payloads", "export.webhook_http"),
    ("export.agent_metrics", "export.webhook_delivery"),
    ("export.otlp_metrics", "export.prometheus", "export.webhook_letters"),
    ("export.outputs", "export.webhook"),
    ("collector",),
    ("export.webhook_options",),
    ("gates", "gates.answers"),
    ("gates.m5", "gates.provenance", "gates.report"),
    ("gates.roots",),
    ("gates.judge",),
    ("collect", "attribute"),
    ("replay",),
    ("cases",),
    ("predictions",),
    ("modelfit", "robustness"),
    ("models",),
)
EDGES = ("bench", "kernel", "lab", "load")  # these may import all of the core; of the core nothing imports them
FRONT = ("cli",)  # used by tools, by programs that are none (`make key-results`, `make demo`, `make lab`, `make m5-gate`), and by the
# options of tools that have too many for one file
PROGRAMS = ("bench.key_results", "bench.late_onset", "lab.slice", "lab.chaos", "lab.benchroot", "kernel.agent_options", "load.options")

PURE = (
    "clock",
    "usage",
    "signals",
    "spans",
    "correlation",
    "slo",
    "load_slis",
    "collector",
    "join",
    "evidence",
    "attribution",
    "episodes",
    "answers",
    "service_state",
    "incidents",
    "explain",
    "detection",
    "samples",
    "synthetic",
    "statistics",
    "estimates",
    "calibration",
    "labels",
    "evaluation",
    "export.agent_state",
    "export.counting",
    "export.agent_metrics",
    "export.webhook_signing",
    "export.webhook_payloads",
    "gates.answers",
    "gates.m5",
    "gates.provenance",
    "gates.report",
)
DECIDES = ("evidence", "attribution", "episodes", "answers", "service_state", "incidents", "sample_judge", "explain", "join", "correlation")
LABELS_PASS = ("scenarios", "synthetic", "slo", "labels", "samples")  # that make labels, carry them, or judge by them
WORLD = {
    "os",
    "time",
    "random",
    "socket",
    "subprocess",
    "sys",
    "shutil",
    "tempfile",
    "threading",
    "queue",
    "select",
    "requests",
    "http",
    "urllib",
    "signal",
    "secrets",
    "uuid",
    "io",
    "gzip",
    "multiprocessing",
    "asyncio",
}
WORLD_CALLS = {
    "open",
    "input",
    "print",
    "now",
    "utcnow",
    "today",
    "default_rng",
    "getenv",
    "read_bytes",
    "read_text",
    "write_bytes",
    "write_text",
}
READS_DATA = {"attribution"}  # load_model and the rules: through data_path, once
HEAVY = {
    "numpy",
    "scipy",
    "orjson",
    "pylibbpf",
    "requests",
    "jsonschema",
    "jsonschema_rs",
    "yaml",
    "rich",
    "matplotlib",
    "opentelemetry",
    "google.protobuf",
    "aiohttp",
    "http.server",
    "prometheus_client",
}


def modules() -> dict[str, Path]:
    """Modules of libslo by dotted name without the package."""
    found = {}
    for path in sorted((ROOT / "libslo").rglob("*.py")):
        parts = path.relative_to(ROOT / "libslo").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name and parts[0] != "_data":
            found[name] = path
    return found


CORE = {name: path for name, path in modules().items() if name.split(".")[0] not in EDGES}


def imports(path: Path, *, lazy: bool = True) -> set[str]:
    """Dotted names that a file imports; `from a import b` gives a and a.b. lazy: those inside functions too."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    nodes: list[ast.AST] = list(ast.walk(tree)) if lazy else list(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def core_imports(path: Path) -> set[str]:
    """Modules of libslo that a file imports."""
    known = modules()
    names = {name.removeprefix("libslo.") for name in imports(path) if name.startswith("libslo.")}
    return {name for name in names if name in known or name.split(".")[0] in EDGES}


def rank(name: str) -> int:
    return next(i for i, row in enumerate(ORDER) if name in row)


def test_every_core_module_has_its_place() -> None:
    """A new module of the core is put into the order on purpose."""
    assert sorted(CORE) == sorted(name for row in ORDER for name in row)


@pytest.mark.parametrize("name", CORE)
def test_imports_go_one_way(name: str) -> None:
    """A module of the core imports only modules before it, and never an edge, the runner or a tool."""
    for other in core_imports(CORE[name]):
        assert other.split(".")[0] not in EDGES, f"{name} imports {other}"
        assert other not in FRONT, f"{name} imports {other}: only tools do"
        assert rank(other) < rank(name), f"{name} imports {other}"
    assert not any(each.split(".")[0] == "slotools" for each in imports(CORE[name]))


@pytest.mark.parametrize("name", [name for name in modules() if name.split(".")[0] in EDGES])
def test_edges_do_not_import_tools_or_the_runner(name: str) -> None:
    """Kernel, lab and load stay below the tools, and kernel does not know the lab."""
    names = imports(modules()[name])
    assert not any(each.split(".")[0] == "slotools" for each in names)
    assert name in PROGRAMS or not any(each.startswith("libslo.cli") for each in names)
    if name.startswith("kernel"):
        assert not any(each.startswith("libslo.lab") for each in names)


@pytest.mark.parametrize("name", PURE)
def test_the_middle_is_pure(name: str) -> None:
    """No files, no clock, no environment, no random numbers of its own, no network in the middle."""
    path = CORE[name]
    touched = {each.split(".")[0] for each in imports(path)} & WORLD
    assert not touched, f"{name} imports {touched}"
    calls = {
        node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
    } & WORLD_CALLS
    if name in READS_DATA or name == "signals":
        calls -= {"read_bytes"}
    assert not calls, f"{name} calls {calls}"


def test_labels_are_read_by_evaluation_only() -> None:
    """No module mentions fault_label or expected_domains but those that make, carry or judge by them, whatever is added."""
    labels = {"fault_label", "expected_domains", "expected_domain"}
    for name, path in CORE.items():
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        if name not in LABELS_PASS:
            assert not words & labels, name
    for name in DECIDES:
        assert not {"evaluation", "labels", "scenarios"} & core_imports(CORE[name]), name


@pytest.mark.parametrize("tool", SCRIPTS)
def test_help_is_cheap(tool: str) -> None:
    """Importing a tool loads nothing heavy: that happens inside the function that needs it."""
    program = f"import sys, slotools.{tool}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "click" in loaded
    assert not HEAVY & loaded


@pytest.mark.parametrize("tool", SCRIPTS)
def test_every_tool_has_its_places(tool: str) -> None:
    """Script entry, code, tests and page all carry the tool's name."""
    assert SCRIPTS[tool] == f"slotools.{tool}:main"
    for place in (f"tools/{tool}.py", f"tests/tools/test_{tool}.py", f"docs/tools/{tool}.md"):
        assert (ROOT / place).is_file(), place


def test_no_tool_without_a_script() -> None:
    """Every file in tools/ is a console script of one lowercase word."""
    names = {path.stem for path in (ROOT / "tools").glob("*.py")} - {"__init__"}
    assert names == set(SCRIPTS)
    assert all(name.isalnum() and name.islower() and name[0].isalpha() for name in names)


@pytest.mark.parametrize("tool", SCRIPTS)
def test_tools_are_short_and_start_with_what_they_do(tool: str) -> None:
    """A tool is options and one call: at most 150 lines, a docstring, no numpy or scipy at the top."""
    path = ROOT / "tools" / f"{tool}.py"
    assert len(path.read_text().splitlines()) <= 150
    assert ast.get_docstring(ast.parse(path.read_text()))
    assert not {each.split(".")[0] for each in imports(path, lazy=False)} & {"numpy", "scipy", "orjson", "yaml", "requests"}


def test_no_two_test_files_of_one_name() -> None:
    """pytest takes all of them in one run (`make test-slow`), and tells them apart by their names only."""
    names = Counter(path.name for path in (ROOT / "tests").glob("*/test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_packages_are_listed() -> None:
    """Every directory with Python code of ours is in the packages list, and nothing else is."""
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "libslo").rglob("__init__.py")} | {"slotools"}
    data = {f"libslo._data.{name}" for name in ("bpf", "contracts", "scenarios")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found | data
    assert {path.parent for path in modules().values()} <= {ROOT / name.replace(".", "/") for name in found}


@pytest.mark.parametrize("name", CORE)
def test_all_names_exist_and_are_documented(name: str) -> None:
    """Each name in __all__ is there; public functions and classes of ours say what they do."""
    module = importlib.import_module(f"libslo.{name}")
    if name in ("export", "gates"):
        return
    assert list(module.__all__) == sorted(set(module.__all__), key=module.__all__.index), "doubled"
    for each in module.__all__:
        value = getattr(module, each)
        if callable(value) and getattr(value, "__module__", "") == module.__name__:
            assert value.__doc__, f"{name}.{each}"
    assert module.__doc__ and "\n" in module.__doc__ + "\n"
