"""The attributor's webhook options: off by default, from four places in their order, secrets never on the command line or the screen."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import lines, objects, run_tool, slo_event, tool_command
from loopback import LoopbackServer, servers
from runs import joined
from standardwebhooks import Webhook

Make = Callable[..., LoopbackServer]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105
ONE = joined("dns_latency", 1)


@pytest.fixture
def receiver() -> Iterator[Make]:
    with servers() as make:
        yield make


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    return path


def config(tmp_path: Path, **webhook: Any) -> list[str]:
    (tmp_path / "toolkit.yaml").write_bytes(orjson.dumps({"webhook": webhook}))
    return ["--config", str(tmp_path / "toolkit.yaml")]


def attributor(*arguments: str, data: bytes = ONE, **env: str) -> tuple[int, bytes, str]:
    done = run_tool("attributor", *arguments, data=data, env=env)
    return done.returncode, done.stdout, done.stderr.decode()


def test_off_by_default(receiver: Make, tmp_path: Path) -> None:
    """Without a word about webhooks, and with a file that only describes one, nothing is sent and nothing said."""
    server = receiver(200)
    plain = attributor()
    assert plain[0] == 0 and "webhook" not in plain[2]
    for webhook in ({"url": server.url}, {"url": server.url, "enabled": False}):
        assert attributor(*config(tmp_path, **webhook)) == plain
    assert attributor("--webhook-url", server.url, "--no-webhook") == plain
    assert attributor(SLO_WEBHOOK_URL=server.url, SLO_WEBHOOK="false") == plain
    assert server.got == []


def test_on_from_each_place(receiver: Make, tmp_path: Path, secret: Path) -> None:
    """By option, by environment, by file; the same incidents on stdout as without; signed."""
    without = attributor()[1]
    for arguments, env in (
        (["--webhook-url", "URL", "--webhook-secret-file", str(secret)], {}),
        ([], {"SLO_WEBHOOK_URL": "URL", "SLO_WEBHOOK_SECRET": SECRET}),
        ([], {"SLO_WEBHOOK_URL": "URL", "SLO_WEBHOOK_SECRET_FILE": str(secret)}),
        (["FILE"], {}),
        (["FILE"], {"SLO_WEBHOOK": "true"}),
    ):
        server = receiver(200)
        place = config(tmp_path, enabled="SLO_WEBHOOK" not in env, url=server.url, secret_file=str(secret))
        words = [each for word in arguments for each in (place if word == "FILE" else [server.url if word == "URL" else word])]
        code, out, err = attributor(*words, **{key: server.url if value == "URL" else value for key, value in env.items()})
        assert (code, out) == (0, without) and f"attributor: webhooks to {server.url}: 2 delivered, 0 sent again, 0 failed" in err
        for got in server.got:
            Webhook(SECRET).verify(got.body, got.headers)
        assert SECRET not in err and SECRET[6:] not in err


def test_option_beats_environment_beats_file(receiver: Make, tmp_path: Path, secret: Path) -> None:
    """For the URL and for the secret."""
    option, environment, file = receiver(200), receiver(200), receiver(200)
    (tmp_path / "file").write_text("from-the-file")
    (tmp_path / "option").write_text("from-the-option")
    place = config(tmp_path, enabled=True, url=file.url, secret_file=str(tmp_path / "file"))
    env = {"SLO_WEBHOOK_URL": environment.url, "SLO_WEBHOOK_SECRET": "from-the-environment"}
    attributor(*place)
    attributor(*place, **env)
    attributor(*place, "--webhook-url", option.url, "--webhook-secret-file", str(tmp_path / "option"), **env)
    for server, key in ((file, b"from-the-file"), (environment, b"from-the-environment"), (option, b"from-the-option")):
        assert len(server.got) == 2
        for got in server.got:
            Webhook(key).verify(got.body, got.headers)


def test_every_key_of_the_file_counts(receiver: Make, tmp_path: Path, secret: Path) -> None:
    """receiver, timeouts, forbid_private, strict and dead_letter of toolkit.yaml do what their options do."""
    server, dead = receiver(202), tmp_path / "dead.jsonl"
    secret.write_text("k" * 32)
    place = config(tmp_path, enabled=True, url=server.url, receiver="opsgenie", secret_file=str(secret), dead_letter=str(dead), strict=True)
    assert attributor(*place)[0] == 0 and server.got[0].headers["authorization"] == f"GenieKey {'k' * 32}"
    place = config(
        tmp_path, enabled=True, url=server.url, receiver="pagerduty", secret_file=str(secret), dead_letter=str(dead), strict=True,
        forbid_private=True, timeout_s=1, total_timeout_s=2,
    )  # fmt: skip
    code, out, _ = attributor(*place)
    assert code == 1 and out, "the incidents are written all the same"
    assert [line["reason"] for line in objects(dead.read_bytes())] == ["private_address"] * 2 and len(server.got) == 2
    hanging = receiver(60.0)
    began = time.monotonic()
    place = config(tmp_path, enabled=True, url=hanging.url, timeout_s=1, total_timeout_s=1)
    code, _, err = attributor(*place)
    assert code == 0 and "no answer in 1 s" in err and time.monotonic() - began < 20


def test_strict_is_a_verdict(receiver: Make) -> None:
    """Exit 1 with the incidents written and the failures said, also under -q; 0 without --webhook-strict."""
    server = receiver(400)
    code, out, err = attributor("-q", "--webhook-strict", "--webhook-url", server.url)
    assert code == 1 and out == attributor()[1]
    facts = err.splitlines()
    assert facts[0].startswith("attributor: trigger of inc-") and facts[0].endswith(f"not delivered to {server.url}: HTTP 400")
    assert facts[1].startswith("  try: ") and len(facts) == 4
    assert attributor("--webhook-url", server.url)[0] == 0
    assert attributor("--webhook-url", receiver(200).url, SLO_WEBHOOK_STRICT="1")[0] == 0


def test_nobody_has_to_listen(receiver: Make, tmp_path: Path) -> None:
    """With stderr a pipe that nobody reads any more, every letter is tried and kept all the same."""
    server, dead = receiver(400), tmp_path / "dead.jsonl"
    reader, writer = os.pipe()
    os.close(reader)
    command = [*tool_command("attributor"), "-q", "--webhook-url", server.url, "--webhook-strict", "--dead-letter", str(dead)]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED" and not name.startswith("SLO_")}
    done = subprocess.run(command, input=ONE, stdout=subprocess.PIPE, stderr=writer, timeout=60, check=False, env=env)
    os.close(writer)
    assert done.returncode == 1 and len(server.got) == len(objects(dead.read_bytes())) == 2


@pytest.mark.parametrize(("answer", "code"), [(200, 0), (400, 1)])
def test_a_reader_that_has_gone_keeps_nothing_from_the_receiver(receiver: Make, answer: int, code: int) -> None:
    """With stdout a pipe that nobody reads any more the incident that finds out is delivered, and a failure is still the verdict."""
    server = receiver(answer)
    reader, writer = os.pipe()
    os.close(reader)
    command = [*tool_command("attributor"), "-q", "--webhook-url", server.url, "--webhook-strict"]
    done = subprocess.run(command, input=ONE, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writer)
    assert done.returncode == code and [got.value["type"] for got in server.got] == ["incident.triggered"]
    assert b"rror" not in done.stderr


def test_letters_are_kept_and_sent_again(receiver: Make, tmp_path: Path) -> None:
    """--dead-letter and --webhook-replay, which reads no input and writes nothing to stdout."""
    down, up, dead = receiver(500), receiver(200), tmp_path / "dead.jsonl"
    code, _, err = attributor("--webhook-url", receiver(400).url, "--dead-letter", str(dead))
    assert code == 0 and f"2 kept in {dead}" in err
    process = subprocess.Popen(
        [*tool_command("attributor"), "--webhook-replay", str(dead), "--webhook-url", up.url],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.wait(30) == 0 and process.stdout and process.stdout.read() == b""
    assert [got.headers["webhook-id"] for got in up.got] == [line["webhook_id"] for line in objects(dead.read_bytes())]
    code, out, err = attributor("--webhook-replay", str(dead), "--webhook-url", down.url, "--webhook-strict")
    assert code == 1 and out == b"" and "0 delivered, 4 sent again, 2 failed" in err
    (tmp_path / "dead.jsonl").write_text('{"webhook_id": 5}\n')
    code, _, err = attributor("--webhook-replay", str(dead), "--webhook-url", up.url)
    assert code == 2 and err.startswith(f"attributor: {dead}:1: ") and "  try: " in err and len(up.got) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stopped_attributor_ends_soon_and_keeps_its_letters(receiver: Make, tmp_path: Path, number: signal.Signals) -> None:
    """With a receiver that hangs for minutes: exit 0 well within ten seconds, and what was not delivered is in the file."""
    server, dead = receiver(300.0), tmp_path / "dead.jsonl"
    arguments = ["--webhook-url", server.url, "--webhook-timeout", "300", "--webhook-total-timeout", "600", "--dead-letter", str(dead)]
    process = subprocess.Popen(
        [*tool_command("attributor"), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin and process.stdout
    process.stdin.write(ONE)
    process.stdin.flush()
    server.wait_for(1)
    assert orjson.loads(process.stdout.readline())["predicted_fault_domain"] == "network_dns", "written while the receiver hangs"
    began = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and time.monotonic() - began < 10
    assert [line["reason"] for line in objects(dead.read_bytes())] == ["closed"] * 2 and b"2 failed (closed 2); 2 kept" in err


def test_the_end_of_the_input_can_still_be_cut_short(receiver: Make, tmp_path: Path) -> None:
    """While the end of the input waits for a receiver, SIGTERM makes it hurry."""
    server = receiver(300.0)
    arguments = ["--webhook-url", server.url, "--webhook-timeout", "300", "--webhook-total-timeout", "600"]
    process = subprocess.Popen(
        [*tool_command("attributor"), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin
    process.stdin.write(ONE)
    process.stdin.close()
    server.wait_for(1)
    time.sleep(0.3)
    assert process.poll() is None
    began = time.monotonic()
    process.terminate()
    assert process.wait(60) == 0 and time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("arguments", "env", "fact"),
    [
        (["--webhook-receiver", "slack"], {}, "--webhook-receiver"),
        (["--webhook"], {}, "--webhook-url: no URL to deliver to"),
        (["--webhook-url", "example.com"], {}, "--webhook-url: not a URL"),
        (["--webhook-receiver", "pagerduty"], {}, "--webhook-secret-file: pagerduty takes one key, not 0"),
        (["--webhook-receiver", "opsgenie"], {"SLO_WEBHOOK_SECRET": "a b"}, "opsgenie takes one key, not 2"),
        (["--webhook-url", "http://h"], {"SLO_WEBHOOK_SECRET": "whsec_%%hunter2"}, "SLO_WEBHOOK_SECRET: secret 1 is not base64"),
        (["--webhook-url", "http://h"], {"SLO_WEBHOOK_SECRET": "x", "SLO_WEBHOOK_SECRET_FILE": "y"}, "one is enough"),
        (["--webhook-url", "http://h", "--webhook-secret-file", "/nonexistent"], {}, "/nonexistent: cannot read the secrets: no such file"),
        (["--webhook-url", "http://h", "--webhook-secret-file", "/"], {}, "/: cannot read the secrets: is a directory"),
        (["--webhook-url", "http://h", "--webhook-secret-file", "/dev/null"], {}, "/dev/null: no secret in it"),
        (["--webhook-url", "http://h", "--dead-letter", "/"], {}, "/: cannot write: is a directory"),
        (["--webhook-url", "http://h", "--webhook-timeout", "0"], {}, "--webhook-timeout"),
        (["--webhook-url", "http://h", "--webhook-timeout", "nan"], {}, "--webhook-timeout"),
        (["--webhook-url", "http://h", "--webhook-replay", "a", "--dead-letter", "a"], {}, "the same file"),
        (["--webhook-url", "http://h", "--webhook-replay", "/nonexistent"], {}, "/nonexistent: no such file"),
        (["--webhook-url", "http://h", "--dead-letter", "-"], {}, "--dead-letter takes a file"),
        (["--webhook-strict"], {}, "webhook options without a webhook"),
        (["--dead-letter", "x"], {}, "webhook options without a webhook"),
        (["--webhook-secret", "hunter2"], {}, "--webhook-secret"),
        ([], {"SLO_WEBHOOK": "perhaps"}, "perhaps"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(arguments: list[str], env: dict[str, str], fact: str) -> None:
    """Exit 2, the fact and a cure, nothing on stdout, and no secret on the screen."""
    code, out, err = attributor(*arguments, **env)
    assert (code, out) == (2, b"") and fact in err.splitlines()[0] and err.splitlines()[1].startswith("  try: ")
    assert "hunter2" not in err or "--webhook-secret" in arguments


def test_variables_alone_ask_for_nothing() -> None:
    """What belongs to a webhook may lie in the environment of a tool that has none."""
    env = {"SLO_WEBHOOK_SECRET": "x", "SLO_DEAD_LETTER": "/", "SLO_WEBHOOK_STRICT": "1"}
    assert attributor(data=lines([slo_event()]), **env)[0] == 0


def test_nothing_is_loaded_when_it_is_off() -> None:
    """Without a webhook neither requests nor its code is imported."""
    program = (
        "import sys; from slotools.attributor import main\n"
        "try: main(['--input', '/dev/null'])\n"
        "except SystemExit: print([name for name in sys.modules if name == 'requests' or 'webhook_' in name and 'options' not in name])"
    )
    done = subprocess.run(
        [*tool_command("attributor")[:2], program], capture_output=True, text=True, check=True, env={**os.environ, "SLO_WEBHOOK": ""}
    )
    assert done.stdout == "[]\n"
