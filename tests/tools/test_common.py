"""One contract over all console scripts: help, version, codes, sentences, pipes, configuration."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from builders import ROOT, T0, TESTDATA, lines, objects, probe, raw_sample, raw_span, run_tool, slo_event, span_request, tool_command

from libslo import __version__

SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
BIN = Path(sys.executable).parent
GATED = str(TESTDATA / "golden" / "m5gate" / "regression" / "candidate")
GATE = (["--candidate-root", GATED, "--gate", "B5", "--max-overhead-pct", "50"], b"")  # B5 alone needs no scipy
READERS = ("collector", "attributor")  # read JSON lines with --input and --on-bad
WRITERS = {
    "collector": ([], lines([raw_sample()])),
    "attributor": (["--pass-through"], lines([{"x": 1}])),
    "faultinject": (["--scenario", "baseline", "--count", "3"], b""),
    "loadgen": (["--load", "chat_short", "--count", "3"], b""),
    "faultreplay": (["--scenario", "baseline", "--count", "30"], b""),
    "m5gate": GATE,
    "schemavalidate": (["--all"], lines([slo_event()])),
}
MANY = {
    "collector": ([], lines([raw_sample()]) * 20_000),
    "attributor": (["--pass-through"], lines([{"x": "y" * 200}]) * 20_000),
    "faultinject": (["--scenario", "mixed", "--count", "4000"], b""),
    "loadgen": (["--load", "chat_short", "--duration", "2000"], b""),
    "faultreplay": (["--scenario", "baseline", "--count", "2000", "--window-s", "1"], b""),
    "m5gate": GATE,
    "schemavalidate": (["--all"], lines([slo_event()]) * 20_000),
}
OTHERS = ("agent", "benchgen", "sloctl")  # one measures the kernel, one writes a directory, one has commands of its own
COMMAND = {"sloctl": ["model", "show"]}  # of a tool with commands, one that needs nothing
GOOD = {"collector": raw_sample(), "attributor": slo_event()}


def text(data: bytes) -> str:
    return data.decode()


def test_every_tool_is_covered_here() -> None:
    """A new tool is put into the tables above, or is one of the others."""
    assert set(SCRIPTS) == {*WRITERS, *OTHERS} == {*MANY, *OTHERS}


@pytest.mark.parametrize("tool", SCRIPTS)
def test_the_script_is_installed(tool: str) -> None:
    """The console script exists and is the module's main."""
    done = subprocess.run([str(BIN / tool), "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tool} {__version__}\n", "")


@pytest.mark.parametrize("tool", SCRIPTS)
def test_help_has_an_example_that_names_the_tool(tool: str) -> None:
    """-h and --help are the same, with an example to paste."""
    long, short = run_tool(tool, "--help"), run_tool(tool, "-h")
    assert long.returncode == short.returncode == 0 and long.stdout == short.stdout
    _, _, examples = text(long.stdout).partition("Example")
    assert tool in examples
    for option in ("--version", "-q, --quiet", "-v, --verbose", "--config", "--out"):
        assert option in text(long.stdout), option


@pytest.mark.parametrize("tool", SCRIPTS)
def test_an_unknown_option_is_usage(tool: str) -> None:
    """Exit 2, one line with the fact, one with the cure, nothing on stdout."""
    done = run_tool(tool, "--no-such-option")
    fact, cure = text(done.stderr).splitlines()
    assert done.returncode == 2 and done.stdout == b""
    assert fact.startswith(f"{tool}: ") and "--no-such-option" in fact and not fact.endswith(".")
    assert cure == f"  try: {tool} --help"


@pytest.mark.parametrize("tool", READERS)
def test_empty_input_is_fine(tool: str) -> None:
    """No lines in, no lines out, exit 0, and the account says so."""
    done = run_tool(tool)
    assert (done.returncode, done.stdout) == (0, b"")
    assert text(done.stderr).startswith(f"{tool}: 0 lines in, 0 bad")


@pytest.mark.parametrize("tool", READERS)
def test_a_broken_line_is_named_with_its_place_and_cure(tool: str, tmp_path: Path) -> None:
    """Broken JSON in line 3: exit 2, FILE:3, a try: line; under --on-bad skip it is reported, counted and left out."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(lines([GOOD[tool]] * 2) + b'{"a":\n' + lines([GOOD[tool]] * 2))
    done = run_tool(tool, "--input", str(path))
    fact, cure = text(done.stderr).splitlines()[-2:]
    assert done.returncode == 2
    assert fact.startswith(f"{tool}: {path}:3: not JSON: ")
    assert cure.startswith("  try: ") and "--on-bad skip" in cure
    piped = run_tool(tool, data=path.read_bytes())
    assert piped.returncode == 2 and f"{tool}: stdin:3: not JSON" in text(piped.stderr)
    skipped = run_tool(tool, "--input", str(path), "--on-bad", "skip")
    assert skipped.returncode == 0
    assert f"{path}:3: not JSON" in text(skipped.stderr) and "(left out)" in text(skipped.stderr)
    assert "5 lines in, 1 bad" in text(skipped.stderr)


@pytest.mark.parametrize("tool", READERS)
def test_nan_is_a_broken_line(tool: str) -> None:
    """NaN is no JSON."""
    data = lines([GOOD[tool]]).replace(b"300", b"NaN")
    done = run_tool(tool, data=data)
    assert done.returncode == 2 and f"{tool}: stdin:1: not JSON" in text(done.stderr)


@pytest.mark.parametrize("tool", READERS)
def test_broken_spans_are_broken_lines(tool: str) -> None:
    """OTLP that cannot be read is named by its line and left out under --on-bad skip."""
    data = lines([GOOD[tool], span_request({"name": "x"}), span_request(raw_span()), GOOD[tool]])
    done = run_tool(tool, data=data)
    assert done.returncode == 2 and f"{tool}: stdin:2: not OTLP spans: " in text(done.stderr)
    skipped = run_tool(tool, "--on-bad", "skip", data=data)
    assert skipped.returncode == 0 and "4 lines in, 1 bad" in text(skipped.stderr)


@pytest.mark.parametrize("tool", READERS)
def test_records_of_other_contracts_are_no_errors(tool: str) -> None:
    """Every contract's records can be fed to every reader."""
    data = lines([raw_sample(), slo_event(), probe(T0), span_request(raw_span()), {"hello": 1}])
    assert run_tool(tool, data=data).returncode == 0


@pytest.mark.parametrize("tool", MANY)
def test_a_closed_pipe_is_quiet(tool: str, tmp_path: Path) -> None:
    """`tool | head -1` gives one line, exit 0, and no complaint about the pipe."""
    arguments, data = MANY[tool]
    (tmp_path / "in").write_bytes(data)
    script = f'"$@" < "{tmp_path}/in" | head -1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", script, "bash", str(BIN / tool), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    first, code = done.stdout.splitlines()
    assert code == "0" and first.startswith("{")
    assert "roken" not in done.stderr and "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize("tool", SCRIPTS)
def test_a_wrong_key_in_the_configuration_is_named(tool: str, tmp_path: Path) -> None:
    """Exit 2 with the file, the path of the key, and where the keys are listed; by --config and by SLO_CONFIG."""
    path = tmp_path / "toolkit.yaml"
    path.write_text("correlation:\n  windw_ms: 5\n")
    more = COMMAND.get(tool, [])
    for done in (run_tool(tool, *more, "--config", str(path)), run_tool(tool, *more, env={"SLO_CONFIG": str(path)})):
        assert done.returncode == 2 and done.stdout == b""
        assert text(done.stderr).splitlines()[0] == f"{tool}: {path}: correlation: unknown key windw_ms"
        assert "  try: " in text(done.stderr)


@pytest.mark.parametrize("tool", SCRIPTS)
def test_a_configuration_that_cannot_be_read_is_usage(tool: str, tmp_path: Path) -> None:
    """A missing file, a directory, and broken YAML."""
    (tmp_path / "broken.yaml").write_text("a: [\n")
    for path, fact in ((tmp_path / "none.yaml", "no such file"), (tmp_path, "is a directory"), (tmp_path / "broken.yaml", "not YAML")):
        done = run_tool(tool, "--config", str(path))
        assert done.returncode == 2 and text(done.stderr).startswith(f"{tool}: {path}:") and fact in text(done.stderr)


def test_option_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    """The four places an option can come from, in their order."""
    path = tmp_path / "toolkit.yaml"
    path.write_text("identity: {cluster: from-file}\n")

    def cluster(*arguments: str, **env: str) -> str:
        done = run_tool("collector", "--emit", "slo-event", *arguments, data=lines([span_request(raw_span())]), env=env)
        return str(objects(done.stdout)[0]["cluster"])

    config = ("--config", str(path))
    assert cluster() == "local"
    assert cluster(*config) == cluster(SLO_CONFIG=str(path)) == "from-file"
    assert cluster(*config, SLO_CLUSTER="from-env") == "from-env"
    assert cluster(*config, "--cluster", "from-option", SLO_CLUSTER="from-env") == "from-option"


@pytest.mark.parametrize("tool", WRITERS)
def test_parents_of_the_output_are_created(tool: str, tmp_path: Path) -> None:
    """--out into a directory that does not exist yet writes there and nothing to stdout; .gz packs."""
    arguments, data = WRITERS[tool]
    plain = run_tool(tool, *arguments, data=data)
    for name in ("out.jsonl", "out.jsonl.gz"):
        path = tmp_path / "new" / "deep" / name
        done = run_tool(tool, *arguments, "--out", str(path), data=data)
        assert (done.returncode, done.stdout) == (0, b"")
        written = path.read_bytes()
        if name.endswith(".gz"):
            import gzip

            written = gzip.decompress(written)
        assert written == plain.stdout != b""


@pytest.mark.parametrize("tool", WRITERS)
def test_a_full_disk_is_the_machine_s_fault(tool: str) -> None:
    """Exit 3 with the reason, on stdout and on --out."""
    arguments, data = WRITERS[tool]
    done = run_tool(tool, *arguments, "--out", "/dev/full", data=data)
    assert done.returncode == 3 and f"{tool}: /dev/full: cannot write: no space left on device" in text(done.stderr)
    with Path("/dev/full").open("wb") as full:
        piped = subprocess.run([*tool_command(tool), *arguments], input=data, stdout=full, stderr=subprocess.PIPE, check=False)
    assert piped.returncode == 3 and f"{tool}: stdout: cannot write: no space left on device" in text(piped.stderr)
    assert b"Exception" not in piped.stderr


@pytest.mark.parametrize("tool", WRITERS)
def test_an_output_that_cannot_be_opened_is_usage(tool: str, tmp_path: Path) -> None:
    """A directory in place of the output is bad input, before any work."""
    arguments, data = WRITERS[tool]
    done = run_tool(tool, *arguments, "--out", str(tmp_path), data=data)
    assert done.returncode == 2 and f"{tool}: {tmp_path}: cannot write: is a directory" in text(done.stderr)


def input_arguments(tool: str, path: Path) -> list[str]:
    return [str(path)] if tool == "schemavalidate" else ["--input", str(path)]


@pytest.mark.parametrize("tool", [*READERS, "schemavalidate"])
def test_an_input_that_cannot_be_read_is_usage(tool: str, tmp_path: Path) -> None:
    """A missing file and a directory: exit 2 with the path, the reason and a cure."""
    for path, reason in ((tmp_path / "none.jsonl", "no such file or directory"), (tmp_path, "is a directory")):
        done = run_tool(tool, *input_arguments(tool, path))
        fact, cure = text(done.stderr).splitlines()[-2:]
        assert done.returncode == 2 and done.stdout == b""
        assert fact.startswith(f"{tool}: {path}:") and reason in fact and cure.startswith("  try: ")


@pytest.mark.parametrize("tool", [*READERS, "schemavalidate"])
def test_a_file_without_permission_is_usage(tool: str, tmp_path: Path) -> None:
    """Permission denied: exit 2. Root is made to give up its power to read everything."""
    path = tmp_path / "secret.jsonl"
    path.write_bytes(lines([slo_event()]))
    path.chmod(0)
    command = [*tool_command(tool), *input_arguments(tool, path)]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("no setpriv to drop CAP_DAC_OVERRIDE with")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 2 and f"{tool}: {path}: permission denied" in text(done.stderr)


@pytest.mark.parametrize(
    ("tool", "place", "arguments"),
    [
        ("collector", "libslo.collect.collect", []),
        ("attributor", "libslo.attribute.attribute", []),
        ("faultinject", "libslo.synthetic.synthetic_records", ["--scenario", "mixed"]),
        ("loadgen", "libslo.load.session.requests_of", ["--load", "chat_short"]),
        ("faultreplay", "libslo.replay.replay", ["--scenario", "baseline"]),
        ("benchgen", "libslo.bench.bundle.bench", ["--out", "x"]),
        ("m5gate", "libslo.gates.judge.judge_roots", ["--candidate-root", "x"]),
        ("schemavalidate", "libslo.verdicts.data_verdicts", []),
        ("agent", "libslo.kernel.capture.check_report", ["--check"]),
    ],
)
def test_our_own_bugs_say_so(
    tool: str, place: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An unexpected exception is exit 70 with its name, without a traceback unless -v asks for it; Ctrl-C is 130."""

    def run(error: BaseException, *more: str) -> tuple[int, str]:
        def fail(*_: object, **__: object) -> None:
            raise error

        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        monkeypatch.setattr(place, fail)
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(f"slotools.{tool}").main([*arguments, *more])
        for number, handler in handlers.items():
            signal.signal(number, handler)
        return int(ended.value.code or 0), capfd.readouterr().err

    code, err = run(ZeroDivisionError("x"))
    assert code == 70 and err.splitlines()[0] == f"{tool}: internal error: ZeroDivisionError: x" and "Traceback" not in err
    code, err = run(ZeroDivisionError("x"), "-v")
    assert code == 70 and "Traceback" in err
    assert run(KeyboardInterrupt()) == (130, f"{tool}: interrupted\n")


@pytest.mark.parametrize("tool", WRITERS)
def test_quiet_is_quiet(tool: str) -> None:
    """-q leaves stderr empty when all is well, and the output is the same."""
    arguments, data = WRITERS[tool]
    loud, quiet = run_tool(tool, *arguments, data=data), run_tool(tool, "-q", *arguments, data=data)
    assert (quiet.returncode, quiet.stderr) == (0, b"") and quiet.stdout == loud.stdout


def start(tool: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*tool_command(tool), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("tool", ["faultinject", "schemavalidate"])
def test_ctrl_c_before_an_answer_is_130(tool: str, tmp_path: Path) -> None:
    """An interrupted run that has no answer yet says so."""
    arguments = ["--scenario", "mixed", "--count", "10000000", "--out", str(tmp_path / "o")] if tool == "faultinject" else []
    process = start(tool, *arguments)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, err = (
        process.communicate(timeout=30) if tool == "faultinject" else (process.wait(30), process.stderr.read() if process.stderr else b"")
    )
    assert process.returncode == 130 and text(err) == f"{tool}: interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_collector_flushes_and_ends_well(number: signal.Signals) -> None:
    """With its input still open, the first signal gives writers a moment; then what is held is written, exit 0."""
    process = start("collector")
    assert process.stdin and process.stdout and process.stderr
    process.stdin.write(lines([probe(T0, tid=1), raw_sample()]))
    process.stdin.flush()
    first = process.stdout.readline()
    process.send_signal(number)
    rest = process.stdout.read()
    assert process.wait(30) == 0
    assert {"signal" in o or "sli_name" in o for o in objects(first + rest)} == {True}
    assert sum("signal" in o for o in objects(first + rest)) == 1
    assert b"2 lines in, 0 bad" in process.stderr.read()


def test_a_second_signal_does_not_wait() -> None:
    """Who is in a hurry signals twice."""
    process = start("collector")
    assert process.stdin and process.stdout
    process.stdin.write(lines([raw_sample()]))
    process.stdin.flush()
    process.stdout.readline()
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0 and time.monotonic() - began < 1.95
    process.communicate()


def test_a_stopped_attributor_answers_what_it_has() -> None:
    """Ctrl-C on a pipeline: the attributor ends with its input and exits 0 with its account."""
    process = start("attributor")
    assert process.stdin and process.stderr
    process.stdin.write(lines([slo_event()]))
    process.stdin.flush()
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0 and b"1 lines in" in err


@pytest.mark.parametrize("tool", ["collector", "attributor"])
def test_the_input_is_never_overwritten(tool: str, tmp_path: Path) -> None:
    """--out naming the input is refused before the file is opened for writing."""
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"a":1}\n')
    done = subprocess.run([str(BIN / tool), "--input", str(file), "--out", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "same file" in done.stderr
    assert file.read_bytes() == b'{"a":1}\n'
