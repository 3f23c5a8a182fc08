"""The JSON encoder: its guards, the standard library's in its place, and which of them is in use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport_kit.envelope import encoder

#: What makes orjson a release that nobody has tried.
UNKNOWN = "import orjson; orjson.__version__ = '99.0.0'\n"
#: What makes an interpreter without orjson.
ABSENT = "import sys; sys.modules['orjson'] = None\n"
NEEDS_ORJSON = pytest.mark.skipif(encoder.Fragment is encoder._Fragment, reason="orjson is not installed")


def run(code: str) -> str:
    """Return the output of a new process, which must end without an error."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def campaign(seed: int, cases: int, before: str = "") -> dict[str, int]:
    """The counts of a campaign that its process survived."""
    code = f"{before}from tests.core.encoder_campaign import main\nmain('{seed}', '{cases}')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=1700, check=False
    )
    assert done.returncode == 0, (seed, done.stdout[-100:], done.stderr[-2000:])
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return counts


@pytest.mark.parametrize(
    "before", ["", pytest.param(UNKNOWN, marks=NEEDS_ORJSON), ABSENT], ids=["as it is", "unknown", "absent"]
)
def test_no_value_at_any_depth_ends_the_process(before: str) -> None:
    """Deep, cyclic, an Enum's, a subclass's, near the limit: each of these once ended an app."""
    counts = campaign(1, 300, before)
    assert counts["done"] == 300
    assert 100 < counts["sealed"] < 300


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_no_value_of_ten_thousand_ends_the_process() -> None:
    """The long form of the one above."""
    assert campaign(2, 10_000)["done"] == 10_000


@NEEDS_ORJSON
def test_a_release_that_nobody_tried_is_guarded_and_one_line_says_so() -> None:
    """Two releases in a row ended the process; the next one may too."""
    out = run(
        UNKNOWN
        + """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s", level="INFO")
from transport_kit.envelope import encoder
from transport_kit import make_transport
for _ in range(2):
    make_transport("http://00000000000000000000000000000001@127.0.0.1:9/1").close(timeout=0)
value = []
value.append(((value,),))
try:
    encoder.dumps(value)
except TypeError:
    print("refused")
"""
    )
    line = f"JSON is written by orjson 99.0.0; {encoder._remark('99.0.0')}"
    assert out.splitlines() == [line, "refused"]


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ("1.0.0-tried", True),
        ("3.10.0", False),
        ("3.10.1", False),
        ("3.10.18", False),
        ("3.11.9", False),
        ("3.10.0rc1", False),
        ("3.12.0", False),
        ("3.13.0", False),
        ("3.9.15", False),
        ("4.0.0", False),
        ("3.11.0rc1", False),
        ("", False),
    ],
)
def test_only_releases_that_were_tried_go_unguarded(
    version: str, safe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table, not a guess: what is not in it is looked through. So far no release is in it."""
    assert not encoder._SOUND
    monkeypatch.setattr(encoder, "_SOUND", frozenset({"1.0.0-tried"}))
    assert (encoder._remark(version) is None) is safe


def test_without_orjson_everything_works_by_the_standard_library() -> None:
    """PyPy and isolated sub-interpreters have no orjson, and apps there have errors all the same."""
    out = run(
        ABSENT
        + """
from transport_kit.envelope import encoder
from transport_kit.envelope.encoding import encode
import transport_kit.reporting.reporter, transport_kit.forwarder, transport_kit.queues.spool
print(encoder.NAME)
print(encode({"a": [1, "é", float("nan"), {2: (3,)}]}, "event"))
"""
    )
    assert out.splitlines() == [
        "json of the standard library",
        repr('{"a":[1,"é",null,{"2":[3]}]}'.encode()),
    ]


@NEEDS_ORJSON
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="its interface is another one there")
def test_a_second_sub_interpreter_encodes_by_orjson_too() -> None:
    """There orjson refuses arguments by keyword; uWSGI and mod_wsgi run apps there."""
    code = (
        "from transport_kit.envelope.encoding import encode; "
        "print(encode({'a': [1]}, 'event').decode(), flush=True)"
    )
    out = run(
        f"""
import _xxsubinterpreters as interpreters
import orjson
one = interpreters.create(isolated=False)
interpreters.run_string(one, {code!r})
interpreters.destroy(one)
"""
    )
    assert out == '{"a":[1]}\n'


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(0.001, 10_000)
    | st.sampled_from([float("nan"), float("inf"), 0.0, -0.0])
    | st.text(st.characters())
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(st.characters()) | st.integers(), inner, max_size=4)
    ),
)


def outcome(action: Any, value: object) -> object:
    """Return the result of an encoder or decoder for a value, or the kind of its refusal."""
    try:
        return action(value)
    except (TypeError, ValueError) as error:
        return TypeError if isinstance(error, TypeError) else ValueError


@given(values)
def test_both_encoders_write_and_refuse_the_same(value: object) -> None:
    """Events and repairs must not depend on the installed packages."""
    assert outcome(encoder._dumps_without_orjson, value) == outcome(encoder.dumps, value)


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: (inner,), lambda inner: {"a": inner}])
@pytest.mark.parametrize("depth", [99, 100, 101, 254, 100_000])
def test_what_is_nested_deeper_than_a_repair_goes_is_refused(wrap: Any, depth: int) -> None:
    """Of the encoders one overflows its buffer, one its stack, and one ends where the frames do."""
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    assert (outcome(encoder._dumps_without_orjson, value) is TypeError) is (depth > 100)
    assert (outcome(encoder.dumps, value) is TypeError) is (depth > 100)


def test_no_bracket_is_written_past_the_end_of_a_buffer() -> None:
    """Most releases reserve no room for the closing ones: the allocator's own checks see it."""
    code = """
from transport_kit.envelope.encoding import encode
shapes = [lambda t: [t], lambda t: (t,), lambda t: {"a": t}, lambda t: ["s", t], lambda t: {"a": (t,)}]
for shape in shapes:
    for depth in range(90, 255):
        for length in range(4):
            value = "x" * length
            for _ in range(depth):
                value = shape(value)
            encode(value, "event")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONMALLOC": "debug"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "text",
    [
        *("NaN", "-Infinity", "1e999", "9" * 400, "01", "1.", "[1,]", "", " 1 ", "\ufeff1", '"\t"', '"\x7f"'),
        *('"\\ud800"', '"\\ud83d\\ude00"', '"\\\\ud800"', '{"a":1,"a":2}', "-0", "-0.0", "1E5", "\u00a01"),
        *(str(2**63), str(2**64), str(-(2**63) - 1), '"\\u0000"', "[" * 1025 + "]" * 1025, "[" * 200_000),
        *(
            '"' + "[" * 2000 + '"',
            "nul",
            "{1:2}",
            "'a'",
            "[1 2]",
            '"a',
            "\ud800",
            b"\xff",
            b'"\xc3\xa9"',
            b"",
        ),
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_both_decoders_read_the_same(text: str | bytes) -> None:
    """The standard library's own reads more than JSON, and follows brackets as far as the stack goes."""
    found, known = outcome(encoder._loads_without_orjson, text), outcome(encoder.loads, text)
    assert (type(found), found) == (type(known), known)


@pytest.mark.parametrize("before", ["", ABSENT], ids=["as it is", "absent"])
def test_deep_text_from_the_wire_is_refused_whatever_recursion_limit_an_app_has(before: str) -> None:
    """A reader that follows brackets as far as the limit overflows the stack of an app that raised it."""
    out = run(
        before
        + """
import sys
sys.setrecursionlimit(10**6)
from transport_kit.envelope import encoder
from transport_kit.runtime.errors import InvalidEnvelope
from transport_kit.envelope.parsing import parse_envelope
deep = b"[" * 400_000 + b"]" * 400_000
try:
    parse_envelope(b'{"a":' + deep + b"}")
except InvalidEnvelope:
    print("refused")
try:
    encoder.loads(deep)
except ValueError:
    print("refused")
"""
    )
    assert out == "refused\nrefused\n"
