"""Exceptions as values: order, tree and texts, and exceptions built to break their reader."""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from transport_kit.envelope import encoder
from transport_kit.reporting.exceptions import exception_values
from transport_kit.reporting.frames import FrameReader


def values_of(error: BaseException, clock: Callable[[], float] = time.monotonic) -> list[dict[str, Any]]:
    """Return the exception's values, checked to be strict JSON."""
    reader = FrameReader((), (), send_pii=False)
    values = exception_values(error, reader, mechanism="test", handled=False, clock=clock)
    encoder.dumps(values)
    return values


def raised(error: BaseException) -> BaseException:
    """Return the exception with a traceback, as if it had been caught."""
    try:
        raise error
    except BaseException as caught:
        return caught


def tree(error: BaseException) -> list[tuple[Any, ...]]:
    """Return text, id, parent, source and group flag of each value, in the order sent."""
    return [
        (
            value["value"],
            value["mechanism"]["exception_id"],
            value["mechanism"].get("parent_id"),
            value["mechanism"].get("source"),
            value["mechanism"].get("is_exception_group", False),
        )
        for value in values_of(error)
    ]


def text_of(error: BaseException) -> str:
    """Return the text of the raised exception."""
    text = values_of(error)[-1]["value"]
    assert isinstance(text, str)
    return text


def test_the_oldest_comes_first_and_the_raised_one_last() -> None:
    """Servers show the last value as the error; ids count from it towards the root cause."""
    try:
        try:
            dict[str, int]()["sku"]
        except KeyError as first:
            raise ValueError("bad cart") from first
    except ValueError as error:
        chained = error
    assert tree(chained) == [("'sku'", 1, 0, "__cause__", False), ("bad cart", 0, None, None, False)]
    assert [value["mechanism"]["type"] for value in values_of(chained)] == ["chained", "test"]
    assert [value["mechanism"]["handled"] for value in values_of(chained)] == [False, False]


def test_an_implicit_context_is_told_apart_from_a_cause() -> None:
    """`raise` in an except block sets a context, `raise ... from` a cause; servers show them differently."""
    try:
        try:
            raise KeyError("a")
        except KeyError:
            raise ValueError("b")  # noqa: B904 - the implicit chain is the subject
    except ValueError as error:
        caught = error
    assert tree(caught) == [("'a'", 1, 0, "__context__", False), ("b", 0, None, None, False)]


def test_from_none_hides_the_context() -> None:
    """`from None` means that the first error does not matter."""
    try:
        try:
            raise KeyError("a")
        except KeyError:
            raise ValueError("b") from None
    except ValueError as error:
        caught = error
    assert [row[0] for row in tree(caught)] == ["b"]


def test_cycles_end() -> None:
    """A cause chain that leads back to its start must not loop for ever."""
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first
    assert [row[0] for row in tree(first)] == ["2", "1"]
    alone = ValueError("alone")
    alone.__cause__ = alone
    assert [row[0] for row in tree(alone)] == ["alone"]


def test_members_of_a_group_hang_on_it_and_their_causes_on_them() -> None:
    """A member's cause with the root as its parent would make a wrong tree."""
    member = ValueError("member 0")
    member.__cause__ = OSError("disk")
    inner = ExceptionGroup("inner", [TypeError("deep")])
    group = ExceptionGroup("outer", [member, inner])
    group.__cause__ = RuntimeError("before")
    assert list(reversed(tree(group))) == [
        ("outer (2 sub-exceptions)", 0, None, None, True),
        ("before", 1, 0, "__cause__", False),
        ("member 0", 2, 0, "exceptions[0]", False),
        ("disk", 3, 2, "__cause__", False),
        ("inner (1 sub-exception)", 4, 0, "exceptions[1]", True),
        ("deep", 5, 4, "exceptions[0]", False),
    ]


def test_an_exception_reached_on_two_ways_is_told_once() -> None:
    """An object that is both member and cause is one exception; this also ends cyclic groups."""
    shared = ValueError("shared")
    group = ExceptionGroup("g", [shared, shared])
    group.__context__ = shared
    assert sorted(row[0] for row in tree(group)) == ["g (2 sub-exceptions)", "shared"]


def test_long_chains_and_wide_groups_are_cut_at_fifty() -> None:
    """A task group of ten thousand members would make an event of megabytes."""
    error: BaseException = ValueError("root")
    for number in range(5000):
        outer = ValueError(str(number))
        outer.__cause__ = error
        error = outer
    assert len(values_of(error)) == 50
    wide = ExceptionGroup("wide", [ValueError(str(n)) for n in range(10_000)])
    assert len(values_of(wide)) == 50
    assert values_of(wide)[-1]["value"] == "wide (10000 sub-exceptions)"


def test_frames_are_shared_out_among_many_exceptions() -> None:
    """Fifty deep tracebacks would make an event that servers refuse; the raised one keeps its frames."""

    def deep(depth: int) -> None:
        if depth:
            deep(depth - 1)
        raise ValueError("deep")

    members = []
    for _ in range(6):
        try:
            deep(300)
        except ValueError as error:
            members.append(error)
    values = values_of(ExceptionGroup("g", members))
    assert [len(value["stacktrace"]["frames"]) for value in reversed(values[:-1])] == [250, 250, 5, 5, 5, 5]
    assert len(encoder.dumps(values)) < 1_000_000


def test_type_and_module_are_told_apart() -> None:
    """Servers group by both; builtins need no module."""

    class Local(Exception):
        pass

    (value,) = values_of(Local("x"))
    assert value["type"].endswith("test_type_and_module_are_told_apart.<locals>.Local")
    assert value["module"] == __name__
    assert "module" not in values_of(ValueError())[0]
    Local.__module__ = 5  # type: ignore[assignment]
    assert "module" not in values_of(Local())[0]


def test_an_exception_never_raised_has_no_stack() -> None:
    """Servers discard an empty list of frames and record an error."""
    assert "stacktrace" not in values_of(ValueError("made"))[0]
    assert "stacktrace" in values_of(raised(ValueError("raised")))[0]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError(), ""),
        (ValueError("plain"), "plain"),
        (ValueError(7), "7"),
        (ValueError(None), "None"),
        (ValueError("code", 7), "('code', 7)"),
        (ValueError(["a", 1]), "['a', 1]"),
        (ValueError(b"raw"), "b'raw'"),
        (ValueError(b"raw", 1), "(b'raw', 1)"),
        (ValueError(KeyError("inner")), "'inner'"),
        (ValueError("x", KeyError("inner")), "('x', KeyError(\"'inner'\"))"),
        (KeyError("sku"), "'sku'"),
        (KeyError(7), "7"),
        (KeyError(uuid.UUID(int=1)), "UUID('00000000-0000-0000-0000-000000000001')"),
        (ValueError(datetime.date(2026, 1, 2)), "2026-01-02"),
        (OSError(2, "No such file", "a.txt"), "[Errno 2] No such file: 'a.txt'"),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
            "'utf-8' codec can't decode byte 0xff in position 0: bad",
        ),
        (ValueError({"password": "hunter2"}), "{'password': '[Filtered]'}"),
        (ValueError("at https://bob:hunter2@db.example/x"), "at https://[Filtered]@db.example/x"),
        (ValueError("lone \ud800 surrogate"), "lone \\ud800 surrogate"),
    ],
)
def test_the_text_is_what_python_would_print(error: BaseException, text: str) -> None:
    """People search for the message they know from the console. A password in a URL is filtered."""
    assert text_of(error) == text


class Opaque:
    """Has no text of its own, and a `__repr__` that must not be called: a query set's reads the database."""

    def __repr__(self) -> str:
        raise AssertionError("called")


class Lazy:
    """Has its own text, such as a translation that is looked up when shown."""

    def __str__(self) -> str:
        return "übersetzt"


def test_an_arguments_repr_is_never_called() -> None:
    """Reporting must never cause I/O, and a dataclass's repr holds its password."""
    name = f"<{__name__}.Opaque>"
    assert text_of(ValueError(Opaque())) == name
    assert text_of(ValueError("x", Opaque())) == f"('x', {name})"
    assert text_of(KeyError(Opaque())) == name
    assert text_of(ValueError([Opaque()])) == f"['{name}']"


def test_an_argument_with_a_text_of_its_own_gives_it() -> None:
    """`raise PermissionDenied(gettext_lazy(...))` is common; its class name would be useless."""
    assert text_of(ValueError(Lazy())) == "übersetzt"


class Unprintable(Exception):
    """Its `__str__` raises the given exception."""

    def __str__(self) -> str:
        raise self.args[0]


def test_an_argument_after_the_name_of_a_secret_is_filtered() -> None:
    """`ValidationError("password", value)` is filtered; a sentence that mentions a password is not a name."""
    for error, expected in (
        (ValueError("password", "hunter2"), "('password', '[Filtered]')"),
        (ValueError("invalid token", "<"), "('invalid token', '<')"),
        (ValueError("user", "bob"), "('user', 'bob')"),
        (ValueError("password", 8, 72), "('password', 8, 72)"),
    ):
        assert values_of(error)[0]["value"] == expected


@pytest.mark.parametrize("problem", [RuntimeError("no"), SystemExit(1), RecursionError(), GeneratorExit()])
def test_a_text_that_can_not_be_had_costs_the_text_only(problem: BaseException) -> None:
    """An exception whose `__str__` raises must not replace the reported one."""
    assert text_of(Unprintable(problem)) == f"<unprintable {__name__}.Unprintable>"


def test_a_text_that_is_no_text_costs_the_text_only() -> None:
    """`__str__` that returns an int makes `str` raise."""

    class Numeric(Exception):
        def __str__(self) -> str:
            return 7  # type: ignore[return-value]  # noqa: PLE0307 - the subject

    assert text_of(Numeric()).startswith("<unprintable ")


def test_the_users_interrupt_is_not_swallowed() -> None:
    """Ctrl-C during a slow `__str__` must end the program."""
    with pytest.raises(KeyboardInterrupt):
        values_of(Unprintable(KeyboardInterrupt()))


def test_a_metaclass_that_hides_its_methods_costs_the_text_only() -> None:
    """Class attributes are looked up through the metaclass, which may be hostile too."""

    class Meta(type):
        def __getattribute__(cls, name: str) -> Any:
            if name == "__str__":
                raise RuntimeError(name)
            return super().__getattribute__(name)

    class Odd(Exception, metaclass=Meta):
        pass

    class Argument(metaclass=Meta):
        pass

    assert text_of(Odd("x")).startswith("<unprintable ")
    assert text_of(ValueError(Argument())).endswith("Argument>")


def test_properties_of_a_subclass_are_not_run() -> None:
    """Causes, contexts and members are read through BaseException itself."""

    class Trap(Exception):
        @property
        def __cause__(self) -> Any:  # type: ignore[override]
            raise AssertionError("run")

        __context__ = __traceback__ = __suppress_context__ = args = __notes__ = __cause__

    assert text_of(Trap("quiet")) == "quiet"


def test_a_huge_text_is_cut() -> None:
    """Servers keep 8192 characters; a megabyte would get the event refused."""

    class Huge(Exception):
        def __str__(self) -> str:
            return "x" * 10_000_000

    for error in (Huge(), ValueError("x" * 10_000_000), ValueError(Huge())):
        assert len(text_of(error)) == 8192
    assert len(text_of(ValueError(list(range(1_000_000))))) < 200
    assert len(text_of(ValueError(10**5000))) < 50
    assert len(text_of(ValueError(b"x" * 10_000_000))) < 600
    assert len(text_of(ValueError(*range(10_000)))) < 200


def test_slow_texts_stop_being_asked() -> None:
    """One slow `__str__` can't be interrupted, but the others of the same capture can be skipped."""
    now = 0.0

    class Slow(Exception):
        def __str__(self) -> str:
            nonlocal now
            now += 0.012
            return "slow"

    error: BaseException = Slow()
    for _ in range(9):
        outer = Slow()
        outer.__cause__ = error
        error = outer
    texts = [value["value"] for value in reversed(values_of(error, lambda: now))]
    assert texts[:2] == ["slow", "slow"]
    assert set(texts[2:]) == {f"<{Slow.__module__}.{Slow.__qualname__}>"}


def test_notes_stand_below_the_text() -> None:
    """Libraries use `add_note` for the step that failed; Python prints notes below the text."""
    error = ValueError("boom")
    error.add_note("while reading line 7")
    error.add_note("of orders.csv")
    assert text_of(error) == "boom\nwhile reading line 7\nof orders.csv"


def test_notes_survive_a_huge_text_and_are_bounded_themselves() -> None:
    """A note is short and useful, a huge text is not: the text is cut first."""
    error = ValueError("x" * 20_000)
    error.add_note("the note")
    assert text_of(error).endswith("...\nthe note")
    assert len(text_of(error)) == 8192
    for _ in range(1000):
        error.add_note("y" * 5000)
    assert len(text_of(error)) == 8192


@pytest.mark.parametrize("notes", [None, "text", 7, [7, None], {"a": 1}])
def test_notes_of_another_kind_are_left_out(notes: Any) -> None:
    """`__notes__` is an ordinary attribute and may have any value."""
    error = ValueError("boom")
    error.__notes__ = notes
    assert text_of(error) == "boom"


def test_a_syntax_error_shows_the_faulty_source() -> None:
    """Its traceback ends in the compiler; the faulty line is in the attributes of the error."""
    with pytest.raises(SyntaxError) as caught:
        compile("a = 1\nb = = 2\n", "/srv/app/shop/broken.py", "exec")
    (value,) = values_of(caught.value)
    assert value["stacktrace"]["frames"][-1] == {
        "filename": "/srv/app/shop/broken.py",
        "abs_path": "/srv/app/shop/broken.py",
        "function": "<module>",
        "lineno": 2,
        "in_app": True,
        "context_line": "b = = 2",
    }
    assert "invalid syntax" in value["value"]


@pytest.mark.parametrize(
    "details",
    [
        (None, 1, 0, "x"),
        ("", 1, 0, "x"),
        (7, 1, 0, "x"),
        ("f.py", "1", 0, "x"),
        ("f.py", 0, 0, "x"),
        ("f.py", None, 0, "x"),
    ],
)
def test_a_syntax_error_of_odd_parts_shows_none(details: Any) -> None:
    """The attributes may have any values."""
    assert "stacktrace" not in values_of(SyntaxError("bad", details))[0]


def test_no_file_is_read_because_a_syntax_error_names_it(tmp_path: Any) -> None:
    """The file name may come from a request: the file's content must not get into the event."""
    secret = tmp_path / "secret.txt"
    secret.write_text("top secret\n")
    value = values_of(SyntaxError("bad", (str(secret), 1, 0, None)))[0]
    assert b"top secret" not in encoder.dumps(value)
    assert value["stacktrace"]["frames"][0]["lineno"] == 1


def test_a_part_that_can_not_be_told_costs_itself_only(caplog: pytest.LogCaptureFixture) -> None:
    """The failing step may be the scrubbing: the part is left out, not sent unscrubbed."""

    class Broken(FrameReader):
        """Raises as soon as it reads."""

        def frames(self, *arguments: Any) -> list[dict[str, Any]]:
            raise ValueError("password=hunter2")

    def clock() -> float:
        raise ValueError("password=hunter2")

    class Spoken(Exception):
        """Has its own text, which takes time."""

        def __str__(self) -> str:
            return "hunter2"

    (value,) = exception_values(
        raised(Spoken()), Broken((), (), send_pii=False), mechanism="test", handled=True, clock=clock
    )
    assert (value["type"].rpartition(".")[2], value["value"]) == ("Spoken", "<unprintable>")
    assert "stacktrace" not in value
    assert [record.getMessage() for record in caplog.records] == [
        "a part of an exception could not be told: ValueError"
    ] * 2
