"""JSON lines: the bad-line policy, bounded memory, batches that do not matter, and nothing JSON cannot carry."""

from __future__ import annotations

import gzip
import io
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import Chunks, lines, probe, raw_sample, slo_event, span_request
from hypothesis import given
from hypothesis import strategies as st

from libslo.errors import CannotError, InputError
from libslo.jsonl import JsonlWriter, LineReader, ReadStats, Record, decode_lines, encode, read_jsonl

KINDS = ("slo-event", "probe-event", "raw-sample")
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def read(data: bytes, kinds: Sequence[str] = KINDS, **options: Any) -> list[Record]:
    return [record for batch in read_jsonl("FILE", kinds, stream=io.BytesIO(data), **options) for record in batch]


def read_until_error(data: bytes, **options: Any) -> tuple[list[Record], InputError]:
    got: list[Record] = []
    with pytest.raises(InputError) as caught:
        for batch in read_jsonl("FILE", KINDS, stream=io.BytesIO(data), **options):
            got += batch
    return got, caught.value


@given(st.lists(st.dictionaries(TEXT, JSON, max_size=4), max_size=6))
def test_what_is_written_is_read_back(values: list[dict[str, Any]]) -> None:
    """Any objects survive a round trip through encode and read_jsonl."""
    values = [{"x": value} for value in values]
    assert [r[1] for r in read(b"".join(map(encode, values)))] == values


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_numbers_are_refused_on_output(bad: float) -> None:
    """NaN and Infinity, which orjson would write as null, are refused with the path of the number."""
    with pytest.raises(InputError, match=r"a\.b\[1\] is -?(nan|inf)"):
        encode({"a": {"b": [1, bad]}})


def test_null_itself_may_be_written() -> None:
    """A null value and the letters "null" in a text are no reason to refuse a line."""
    assert encode({"a": None, "b": "null", "null": 1.5}) == b'{"a":null,"b":"null","null":1.5}\n'


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_non_finite_numbers_are_refused_on_input(word: str) -> None:
    """A line with NaN or an infinite number is a bad line."""
    data = lines([raw_sample()]).replace(b'"ttft_ms":300', f'"ttft_ms":{word}'.encode())
    _, error = read_until_error(data)
    assert "not JSON" in error.fact and error.line == 1


FIVE = [raw_sample(request_id=f"r{i}") for i in range(5)]


def with_bad_third(bad: bytes) -> bytes:
    rows = lines(FIVE).splitlines(keepends=True)
    rows[2] = bad + b"\n"
    return b"".join(rows)


BAD_LINES = {
    b'{"ttft_ms":1,': "not JSON",
    b"hello": "not JSON",
    b"[1,2]": "a list where an object belongs",
    b'"text"': "a string where an object belongs",
    b"null": "a null where an object belongs",
    b"17": "a number where an object belongs",
    lines([{**raw_sample(), "ttft_ms": "300"}]).strip(): "ttft_ms: '300' is not of type number",
    lines([{key: value for key, value in raw_sample().items() if key != "cluster"}]).strip(): "'cluster' is missing",
    lines([{key: value for key, value in raw_sample().items() if key != "ttft_ms"}]).strip(): "'ttft_ms' is missing",
    lines([raw_sample(colour="red")]).strip(): "unknown key colour",
    b'{"request_id":"\xff\xfe"}': "not JSON",
    b"{} {}": "not JSON",
}


@pytest.mark.parametrize("bad", BAD_LINES)
def test_fail_delivers_what_came_before_and_names_the_line(bad: bytes) -> None:
    """A bad third line of five ends the reading: two records are delivered first, the error names FILE:3, the fact and the cure."""
    stats = ReadStats()
    got, error = read_until_error(with_bad_third(bad), stats=stats)
    assert [r[1]["request_id"] for r in got] == ["r0", "r1"]
    assert (error.source, error.line) == ("FILE", 3)
    assert BAD_LINES[bad] in error.fact and "--on-bad skip" in str(error.hint)
    assert str(error).startswith("FILE:3: ")
    assert stats.bad == 1 and stats.by_kind["raw-sample"] == 2


@pytest.mark.parametrize("bad", BAD_LINES)
def test_skip_reports_counts_and_goes_on(bad: bytes) -> None:
    """With on_bad skip the other four records come, and the bad one is reported once and counted."""
    stats, reported = ReadStats(), []
    got = read(with_bad_third(bad), on_bad="skip", report=reported.append, stats=stats)
    assert [r[1]["request_id"] for r in got] == ["r0", "r1", "r3", "r4"]
    assert [error.line for error in reported] == [3]
    assert (stats.lines, stats.bad, stats.by_kind["raw-sample"]) == (5, 1, 4)


@pytest.mark.parametrize("bad", BAD_LINES)
@pytest.mark.parametrize("place", [0, 1, 4])
def test_a_bad_line_among_lines_of_the_expected_kind_is_found(place: int, bad: bytes) -> None:
    """Lines of one kind are checked together: which one is bad does not matter, nor how."""
    rows = lines(FIVE).splitlines()
    rows[place] = bad
    reported: list[InputError] = []
    got = read(b"\n".join(rows), ("raw-sample",), on_bad="skip", report=reported.append)
    assert [error.line for error in reported] == [place + 1] and len(got) == 4


def test_column_of_broken_json_is_one_based() -> None:
    """The place inside a broken line is said as a column that an editor understands."""
    _, error = read_until_error(b'{"a": x}\n')
    assert error.fact.endswith("at column 7")


def test_empty_input_gives_nothing() -> None:
    """No bytes, no records, no error."""
    stats = ReadStats()
    assert read(b"", stats=stats) == [] and stats.lines == 0


def test_blank_lines_crlf_and_a_missing_last_newline_do_not_matter() -> None:
    """Blank lines, CRLF ends and a last line without its newline change no record."""
    plain = [r[1] for r in read(lines(FIVE))]
    odd = b"\n \r\n" + b"\r\n\r\n".join(lines(FIVE).splitlines())
    assert [r[1] for r in read(odd)] == plain


def test_line_numbers_count_blank_lines() -> None:
    """A bad line after blank ones is named by its number in the file."""
    _, error = read_until_error(b"\n\n\nx\n")
    assert error.line == 4


def test_envelope_is_opened() -> None:
    """{"kind", "payload"} is taken for its payload, which is checked like a bare object."""
    (record,) = read(lines([{"kind": "raw-sample", "payload": raw_sample()}]))
    assert record[:2] == ("raw-sample", raw_sample())
    _, error = read_until_error(lines([{"kind": "raw-sample", "payload": raw_sample(ttft_ms="1")}]))
    assert "ttft_ms" in error.fact


def test_an_object_with_more_than_kind_and_payload_is_no_envelope() -> None:
    """Only exactly these two keys make an envelope."""
    value = {"kind": "raw-sample", "payload": raw_sample(), "more": 1}
    assert read(lines([value]))[0][:2] == ("", value)


def test_strangers_come_with_an_empty_kind() -> None:
    """An object of no contract asked for is handed on with kind "" and the line as it came, and is counted."""
    stats = ReadStats()
    raw = b'{"hello" :  "world"}'
    assert [r[:3] for r in read(raw + b"\n", stats=stats)] == [("", {"hello": "world"}, raw)]
    assert stats.unknown == 1


@pytest.mark.parametrize("wanted", ["raw-sample", "probe-event", "slo-event", "otlp-spans"])
def test_records_of_another_contract_are_strangers_not_errors(wanted: str) -> None:
    """What another tool consumes is passed over, not taken for a broken record of this one."""
    others = {"raw-sample": raw_sample(), "slo-event": slo_event(), "probe-event": probe(), "otlp-spans": span_request()}
    for kind, value in others.items():
        ((found, *_),) = read(lines([value]), kinds=[wanted])
        assert found == (kind if kind == wanted else "")


def test_kinds_may_alternate() -> None:
    """Records of several contracts on one stream are each told apart."""
    data = lines([raw_sample(), probe(), slo_event(), probe(), raw_sample()])
    assert [r[0] for r in read(data)] == ["raw-sample", "probe-event", "slo-event", "probe-event", "raw-sample"]


MIXED = (
    lines([raw_sample(request_id="é✓"), probe(), {"x": 1}])
    + b"\n{broken\r\n"
    + lines([slo_event(), {"kind": "k", "payload": probe(value=2)}])[:-1]
)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=30))
def test_batches_cut_anywhere_give_the_same_records(sizes: list[int]) -> None:
    """However the bytes are cut into reads, the records, the errors and the counts are the same."""

    def everything(stream: Any) -> Any:
        stats, errors = ReadStats(), []
        batches = read_jsonl("F", KINDS, stream=stream, on_bad="skip", report=lambda e: errors.append(str(e)), stats=stats)
        return [record for batch in batches for record in batch], errors, stats

    assert everything(Chunks(MIXED, sizes)) == everything(io.BytesIO(MIXED))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 50))
def test_the_limit_on_a_line_does_not_depend_on_the_cut(sizes: list[int], limit: int) -> None:
    """A line is too long or it is not, wherever the reads cut it."""
    data = b"".join(b"x" * length + b"\n" for length in (1, 49, 50, 51, 3, 200, 10)) + b"y" * 52
    found = [
        (first + i, None if line is None else len(line))
        for first, batch in LineReader("F", max_line_bytes=limit, stream=Chunks(data, sizes)).batches()
        for i, line in enumerate(batch)
    ]
    assert found == [(i + 1, None if n > limit else n) for i, n in enumerate((1, 49, 50, 51, 3, 200, 10, 52))]


def test_a_live_stream_is_served_at_once() -> None:
    """Whatever one read returned is delivered before the next read."""
    stream = read_jsonl("F", KINDS, stream=Chunks(lines(FIVE), [len(lines(FIVE[:1])), 10**6]))
    assert len(next(stream)) == 1 and len(next(stream)) == 4


def test_a_50_mb_line_is_refused_without_being_held(tmp_path: Path) -> None:
    """A line of 50 MB is a bad line at the 16 MB limit; the process never holds much more than that limit."""
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(lines([raw_sample()]) + b'{"a":"')
        for _ in range(50):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n' + lines([raw_sample()]))
    program = (
        "import resource, sys\n"
        "from libslo.jsonl import read_jsonl, MAX_LINE_BYTES\n"
        "list(read_jsonl('/dev/null', ['raw-sample']))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "errors = []\n"
        "n = sum(map(len, read_jsonl(sys.argv[1], ['raw-sample'], on_bad='skip', report=errors.append)))\n"
        "print(n, errors[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    records, *sentence, grown_kb = done.stdout.split()
    assert records == "2" and " ".join(sentence).endswith(f"{path}:2: line longer than {16 << 20} bytes")
    assert int(grown_kb) < 30_000


def test_gz_is_packed_and_unpacked_by_suffix(tmp_path: Path) -> None:
    """A path that ends in .gz is packed on writing and unpacked on reading; the same records make the same bytes."""
    path = tmp_path / "new" / "a.jsonl.gz"
    packed = []
    for _ in range(2):
        with JsonlWriter(str(path)) as writer:
            for value in FIVE:
                writer.write(value)
        packed.append(path.read_bytes())
    assert packed[0][4:8] == bytes(4)  # no time of writing in the header
    assert packed[0] == packed[1] and gzip.decompress(packed[0]) == lines(FIVE)
    assert [r[1] for batch in read_jsonl(str(path), KINDS) for r in batch] == FIVE


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"no gzip at all", lambda data: data[:20] + b"\0\0\0" + data[23:]])
def test_damaged_gz_is_bad_input(tmp_path: Path, damage: Any) -> None:
    """A truncated, broken or mislabelled .gz is an input error with the file's name."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(damage(gzip.compress(lines(FIVE * 50))))
    with pytest.raises(InputError) as caught:
        list(read_jsonl(str(path), KINDS))
    assert caught.value.source == str(path) and caught.value.hint


def test_missing_file_and_directory_are_bad_input(tmp_path: Path) -> None:
    """A path that cannot be read says which, why, and what to check."""
    for path, why in ((tmp_path / "none.jsonl", "no such file"), (tmp_path, "is a directory"), (tmp_path / "none.gz", "no such file")):
        with pytest.raises(InputError, match=why) as caught:
            list(read_jsonl(str(path), KINDS))
        assert caught.value.source == str(path) and caught.value.hint


def test_decode_lines_checks_what_is_in_memory() -> None:
    """decode_lines gives records or raises at the first bad line."""
    assert [r[0] for r in decode_lines(lines(FIVE).splitlines(), KINDS)] == ["raw-sample"] * 5
    with pytest.raises(InputError, match="input:2"):
        decode_lines([lines(FIVE[:1]), b"{"], KINDS)


def test_writer_creates_parents_and_counts(tmp_path: Path) -> None:
    """Parents of the output are created; lines are counted however they were written."""
    path = tmp_path / "a" / "b" / "c.jsonl"
    with JsonlWriter(str(path)) as writer:
        writer.write({"a": 1})
        writer.write_line(b"{}\n")
        writer.write_block(b"{}\n{}\n", 2)
    assert writer.lines == 4 and path.read_bytes() == b'{"a":1}\n{}\n{}\n{}\n'


def test_writer_keeps_what_came_before_an_error(tmp_path: Path) -> None:
    """An error in the middle of a run does not lose what was answered before it."""
    path = tmp_path / "a.jsonl"
    with pytest.raises(InputError), JsonlWriter(str(path)) as writer:
        writer.write({"a": 1})
        writer.write({"a": math.nan})
    assert orjson.loads(path.read_bytes()) == {"a": 1}


def test_writer_says_that_it_cannot(tmp_path: Path) -> None:
    """A directory as output is bad input; a full disk is the machine's fault."""
    with pytest.raises(InputError, match="is a directory"):
        JsonlWriter(str(tmp_path))
    with pytest.raises(CannotError, match="no space left"), JsonlWriter("/dev/full") as writer:
        writer.write({"a": 1})


def test_writer_flush_reaches_the_reader(tmp_path: Path) -> None:
    """flush hands everything on at once, before close."""
    path = tmp_path / "a.jsonl"
    writer = JsonlWriter(str(path))
    writer.write({"a": 1})
    writer.flush()
    assert path.read_bytes() == b'{"a":1}\n'
    writer.close()


def test_a_line_nested_without_end_is_a_bad_line() -> None:
    """It ends neither the run nor the batch that it is in."""
    deep = b'{"stream_unix_nano":1,"x":' + b"[" * 900 + b"]" * 900 + b"}"
    bad: list[InputError] = []
    data = b"\n".join([b'{"stream_unix_nano":1}', deep, b'{"stream_unix_nano":2}', b""])
    batches = list(read_jsonl("F", ("stream-time",), stream=io.BytesIO(data), on_bad="skip", report=bad.append))
    assert [record[1]["stream_unix_nano"] for batch in batches for record in batch] == [1, 2]
    assert [error.line for error in bad] == [2]
