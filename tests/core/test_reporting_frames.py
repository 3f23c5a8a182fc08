"""Frames: location, source lines, in-app flag and variables."""

from __future__ import annotations

import importlib.util
import json
import linecache
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from transport_kit.envelope import encoder
from transport_kit.reporting import frames as room_under_test
from transport_kit.reporting.frames import FrameReader
from transport_kit.reporting.values.bounded import Room


@pytest.fixture(autouse=True)
def _fresh_lines() -> Iterator[None]:
    """Clear the line cache, so that files of one test don't affect another."""
    linecache.clearcache()
    yield
    linecache.clearcache()


def reader(**options: Any) -> FrameReader:
    """A reader without module lists."""
    return FrameReader(
        options.get("include", ()), options.get("exclude", ()), send_pii=options.get("send_pii", False)
    )


def traceback_of(call: Callable[[], object]) -> types.TracebackType | None:
    """Return the traceback of the exception that the call raises, without this function's own frame."""
    try:
        call()
    except BaseException as error:
        return error.__traceback__.tb_next if error.__traceback__ else None
    raise AssertionError("nothing was raised")


def frames_of(
    call: Callable[[], object], using: FrameReader | None = None, limit: int = 250
) -> list[dict[str, Any]]:
    """Return the frames of that exception, without this function's own, checked to be strict JSON."""
    found = (using or reader()).frames(traceback_of(call), limit, Room(256 * 1024))
    encoder.dumps(found)
    return found


def load(path: Path, name: str, source: str) -> types.ModuleType:
    """Return a module from a file, as if imported from the folder above its package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOURCE = (
    "\n".join(f"# line {n}" for n in range(1, 9)) + "\ndef fail():\n    raise ValueError('x')\n# 11\n# 12\n"
)


def test_a_frame_says_where_it_is(tmp_path: Path) -> None:
    """The path from the import root is the same on each host; the absolute path is not."""
    module = load(tmp_path / "shop" / "cart.py", "shop.cart", SOURCE)
    (frame,) = frames_of(module.fail)
    assert frame == {
        "filename": "shop/cart.py",
        "abs_path": str(tmp_path / "shop" / "cart.py"),
        "module": "shop.cart",
        "function": "fail",
        "lineno": 10,
        "in_app": True,
        "pre_context": ("# line 5", "# line 6", "# line 7", "# line 8", "def fail():"),
        "context_line": "    raise ValueError('x')",
        "post_context": ("# 11", "# 12"),
    }


def test_the_oldest_call_comes_first_and_has_its_qualified_name() -> None:
    """Servers show the last frame as the one that failed; `Cart.load` is clearer than `load`."""

    class Cart:
        def load(self) -> None:
            raise ValueError

    def outer() -> None:
        Cart().load()

    found = frames_of(outer)
    assert [frame["function"].rpartition("<locals>.")[2] for frame in found] == ["outer", "Cart.load"]


@pytest.mark.parametrize(
    ("path", "module", "expected"),
    [
        ("shop/__init__.py", "shop", "shop/__init__.py"),
        ("shop/__main__.py", "shop.__main__", "shop/__main__.py"),
        ("shop/a/b.py", "shop.a.b", "shop/a/b.py"),
        (
            "shop/fast.cpython-311-x86_64-linux-gnu.so",
            "shop.fast",
            "shop/fast.cpython-311-x86_64-linux-gnu.so",
        ),
        ("run.py", "__main__", "run.py"),
        ("lib/other.py", "renamed", "lib/other.py"),
    ],
)
def test_the_file_name_is_relative_to_the_import_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, module: str, expected: str
) -> None:
    """By the module's name, or else by `sys.path`."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path), "", os.sep, 7])
    assert room_under_test._relative(str(tmp_path / path), module) == expected


def test_a_file_outside_of_every_import_root_keeps_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a script started by its path from another folder."""
    monkeypatch.setattr(sys, "path", [])
    assert room_under_test._relative("/opt/jobs/nightly.py", "__main__") == "nightly.py"
    assert room_under_test._relative("<frozen importlib._bootstrap>", None) == "<frozen importlib._bootstrap>"


def test_deep_recursion_keeps_the_first_fifty_and_the_last_two_hundred() -> None:
    """Start and end matter, the middle repeats itself. Servers cut in the same way."""

    def call(depth: int) -> None:
        if depth == 0:
            raise ValueError
        call(depth - 1)

    found = frames_of(lambda: call(600))
    depths = [frame["vars"]["depth"] for frame in found if "depth" in frame.get("vars", {})]
    assert len(found) == 250
    assert depths[:49] == list(range(600, 551, -1))
    assert depths[49:] == list(range(199, -1, -1))
    assert len(frames_of(lambda: call(600), limit=5)) == 5


def test_code_of_the_standard_library_and_of_packages_is_not_the_apps(tmp_path: Path) -> None:
    """Servers collapse frames that are not in-app, and group by those that are."""
    assert [frame["in_app"] for frame in frames_of(lambda: json.loads("{"))][1:] == [False] * 3
    for folder in ("site-packages", "dist-packages"):
        module = load(tmp_path / folder / "dep" / "core.py", "dep.core", SOURCE)
        assert frames_of(module.fail)[0]["in_app"] is False


def test_include_beats_exclude_and_both_beat_the_place(tmp_path: Path) -> None:
    """A prefix ends at a dot: `shop` does not match `shopping`."""
    package = load(tmp_path / "site-packages" / "shop" / "cart.py", "shop.cart", SOURCE)
    other = load(tmp_path / "shopping.py", "shopping", SOURCE)
    both = reader(include=("shop.cart",), exclude=("shop", "shopping"))
    assert frames_of(package.fail, both)[0]["in_app"] is True
    assert frames_of(other.fail, both)[0]["in_app"] is False
    assert frames_of(other.fail, reader(exclude=("shop",)))[0]["in_app"] is True


def test_generated_code_is_not_the_apps_unless_it_is_the_main_program() -> None:
    """`<string>` has no file; a line typed into an interpreter is the user's code all the same."""
    namespace: dict[str, Any] = {"__name__": "shop.generated"}
    exec("def fail(): raise ValueError", namespace)
    (frame,) = frames_of(namespace["fail"])
    assert (frame["filename"], frame["abs_path"], frame["in_app"]) == ("<string>", "<string>", False)
    assert "context_line" not in frame
    namespace["__name__"] = "__main__"
    assert frames_of(namespace["fail"])[0]["in_app"] is True
    del namespace["__name__"]
    assert "module" not in frames_of(namespace["fail"])[0]


def test_our_own_frames_are_foreign_and_keep_their_variables() -> None:
    """This library's frames are not in-app, and have no variables, which may contain the DSN."""
    namespace: dict[str, Any] = {"__name__": "transport_kit.http"}
    exec(compile("def fail(dsn):\n    raise ValueError", "/srv/own/http.py", "exec"), namespace)
    (frame,) = frames_of(lambda: namespace["fail"]("x"))[1:]
    assert frame["in_app"] is False
    assert "vars" not in frame


def test_source_comes_from_the_loader_when_there_is_no_file() -> None:
    """Code in a zip archive has lines too."""

    class Loader:
        def get_source(self, name: str) -> str:
            return "def fail():\n    raise ValueError('zipped')\n"

    namespace: dict[str, Any] = {"__name__": "zipped", "__loader__": Loader()}
    exec(
        compile("def fail():\n    raise ValueError('zipped')\n", "/srv/app.zip/zipped.py", "exec"), namespace
    )
    assert frames_of(namespace["fail"])[0]["context_line"] == "    raise ValueError('zipped')"


@pytest.mark.parametrize("answer", [RuntimeError("no"), 7, b"bytes"])
def test_a_loader_that_fails_costs_the_lines_only(answer: Any) -> None:
    """A loader is code of the app or of an import hook, and may raise."""

    class Loader:
        def get_source(self, name: str) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    namespace: dict[str, Any] = {"__name__": "hooked", "__loader__": Loader()}
    exec(compile("def fail():\n    raise ValueError\n", "/srv/hooked.py", "exec"), namespace)
    (frame,) = frames_of(namespace["fail"])
    assert frame["lineno"] == 2
    assert "context_line" not in frame


def test_files_that_are_gone_shorter_or_badly_encoded_cost_the_lines_only(tmp_path: Path) -> None:
    """A deployment replaces files under a running process."""
    gone = load(tmp_path / "gone.py", "gone", SOURCE)
    (tmp_path / "gone.py").unlink()
    gone.__dict__.pop("__loader__")
    gone.__dict__.pop("__spec__")
    shorter = load(tmp_path / "shorter.py", "shorter", SOURCE)
    (tmp_path / "shorter.py").write_text("# one line\n")
    broken = load(tmp_path / "broken.py", "broken", SOURCE)
    (tmp_path / "broken.py").write_bytes(b"# coding: utf-8\n\xff\xfe\n" * 20)
    unknown = load(tmp_path / "unknown.py", "unknown", SOURCE)
    (tmp_path / "unknown.py").write_bytes(b"# coding: no-such-coding\n" * 20)
    for module in (gone, shorter, broken, unknown):
        (frame,) = frames_of(module.fail)
        assert frame["lineno"] == 10
        assert "context_line" not in frame


def test_pipes_and_huge_files_are_never_opened(tmp_path: Path) -> None:
    """Opening a pipe waits for a writer: the request would hang in its error handler."""
    os.mkfifo(tmp_path / "pipe.py")
    with open(tmp_path / "huge.py", "wb") as file:
        file.truncate(64 * 1024 * 1024)
    for name in ("pipe.py", "huge.py", "nul\0.py"):
        namespace: dict[str, Any] = {"__name__": "odd"}
        try:
            code = compile("def fail(): raise ValueError", str(tmp_path / name), "exec")
        except ValueError:
            continue  # this Python refuses the name itself
        exec(code, namespace)
        assert "context_line" not in frames_of(namespace["fail"])[0]


def test_a_working_directory_that_is_gone_costs_the_absolute_path_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon's directory may have been removed; `abspath` then raises."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert room_under_test._absolute("relative.py") == "relative.py"


def test_long_lines_are_cut(tmp_path: Path) -> None:
    """Generated and minified code has lines of megabytes."""
    module = load(tmp_path / "wide.py", "wide", "def fail():\n    raise ValueError('" + "x" * 5000 + "')\n")
    assert len(frames_of(module.fail)[0]["context_line"]) == 256


def test_the_same_line_is_described_once_and_code_of_the_same_id_is_not_mixed_up() -> None:
    """The cache is keyed by id and module: an entry keeps its code alive, so that the id can't be reused."""
    code = compile("def fail(): raise ValueError", "/srv/x.py", "exec")
    one: dict[str, Any] = {"__name__": "one"}
    exec(code, one)
    fail = one["fail"]
    two = types.FunctionType(fail.__code__, {"__name__": "two"})
    using = reader()
    assert [frames_of(call, using)[0]["module"] for call in (fail, two, fail)] == ["one", "two", "one"]
    assert len(using._known) == 1


def test_what_is_done_to_a_frame_does_not_reach_the_next_one(tmp_path: Path) -> None:
    """Source lines are cached; a hook may change its event."""
    module = load(tmp_path / "shop.py", "shop", SOURCE)
    using = reader()
    first = frames_of(module.fail, using)[0]
    assert (type(first["pre_context"]), type(first["post_context"])) == (tuple, tuple)
    first.clear()
    again = frames_of(module.fail, using)[0]
    assert (len(again["pre_context"]), len(again["post_context"])) == (5, 2)


def test_the_caches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app that generates code for each request must not fill the memory through its errors."""
    monkeypatch.setattr(room_under_test, "_CACHED_LINES", 10)
    monkeypatch.setattr(room_under_test, "_CACHED_NAMES", 10)
    using = reader()
    for number in range(50):
        namespace: dict[str, Any] = {"__name__": "generated"}
        exec(f"def fail(v{number}): raise ValueError", namespace)
        frames_of(lambda fail=namespace["fail"]: fail(1), using)  # type: ignore[misc]
    assert len(using._known) <= 10
    assert len(using._costs) <= 10


def variables_of(call: Callable[[], object], **options: Any) -> dict[str, Any]:
    """Return the variables of the failing frame."""
    found: dict[str, Any] = frames_of(call, reader(**options))[-1].get("vars", {})
    return found


class Opaque:
    """Fails the test if any of its methods is called."""

    def __repr__(self) -> str:
        raise AssertionError("called")

    __str__ = __len__ = __iter__ = __bool__ = __hash__ = __eq__ = __repr__  # type: ignore[assignment]

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(name)


def test_variables_are_plain_values_and_other_objects_their_class() -> None:
    """As in a debugger, but without running a line of the app's code."""

    def fail() -> None:
        number, text, nothing, flag, ratio = 7, "bob", None, True, 0.5
        items, pairs, mapping = [1, "two"], (1, 2), {"a": {"b": 1}, 3: 4}
        thing = Opaque()
        raise ValueError(number, text, nothing, flag, ratio, items, pairs, mapping, id(thing))

    assert variables_of(fail) == {
        "number": 7,
        "text": "bob",
        "nothing": None,
        "flag": True,
        "ratio": 0.5,
        "items": [1, "two"],
        "pairs": [1, 2],
        "mapping": {"a": {"b": 1}, "3": 4},
        "thing": f"<{__name__}.Opaque>",
    }


def test_secrets_are_filtered_by_name_at_every_depth() -> None:
    """The variables of a login view include the password."""

    def fail() -> None:
        password, api_key, csrf_middleware, ip_address = "hunter2", b"hunter2", Opaque(), "192.0.2.7"
        environ = {"HTTP_AUTHORIZATION": "Basic hunter2", "REMOTE_ADDR": "192.0.2.7", "PATH_INFO": "/login"}
        headers = [("Cookie", "sessionid=hunter2"), ("Accept", "*/*")]
        url = "https://bob:hunter2@shop.example/reset?token=hunter2&page=2"
        body = '{"user": "bob", "password": "hunter2"}'
        raise ValueError(password, api_key, csrf_middleware, ip_address, environ, headers, url, body)

    off, on = variables_of(fail), variables_of(fail, send_pii=True)
    assert b"hunter2" not in encoder.dumps([off, on])
    assert b"192.0.2.7" not in encoder.dumps(off)
    assert (off["password"], off["api_key"], off["ip_address"]) == ("[Filtered]",) * 3
    assert off["environ"] == {
        "HTTP_AUTHORIZATION": "[Filtered]",
        "REMOTE_ADDR": "[Filtered]",
        "PATH_INFO": "/login",
    }
    assert off["headers"] == [["Cookie", "[Filtered]"], ["Accept", "*/*"]]
    assert off["url"] == "https://[Filtered]@shop.example/reset?token=[Filtered]&page=2"
    assert off["body"] == '{"user": "bob", "password": "[Filtered]"}'
    assert on["ip_address"] == "192.0.2.7"


def test_variables_of_a_frame_stay_within_two_kibibytes() -> None:
    """Each frame of a deep stack takes room on the wire and in the queue."""

    def fail() -> None:
        a = b = c = d = "x" * 100_000
        e = f = g = h = ["\u00e9\n" * 300] * 50
        i = j = k = {str(n): "\U0001f600" * 200 for n in range(50)}
        raise ValueError(a, b, c, d, e, f, g, h, i, j, k)

    found = variables_of(fail)
    assert 1500 < len(encoder.dumps(found)) <= 2048
    assert len(found["a"]) == 512


def test_variables_stop_when_the_events_allowance_is_used_up() -> None:
    """The failing frame comes first; frames further out may go without variables."""

    def inner() -> None:
        text = "x" * 400
        raise ValueError(text)

    def outer() -> None:
        text = "y" * 400
        inner()
        raise AssertionError(text)

    found = reader().frames(traceback_of(outer), 250, Room(440))
    assert ["vars" in frame for frame in found] == [False, True]


def test_many_variables_are_cut_at_fifty() -> None:
    """Generated functions have hundreds."""
    namespace: dict[str, Any] = {"__name__": "wide"}
    body = "\n".join(f"    v{n} = None" for n in range(200))
    exec(f"def fail():\n{body}\n    raise ValueError", namespace)
    assert len(variables_of(namespace["fail"])) == 50


def test_a_modules_frame_shows_its_values_and_not_its_imports() -> None:
    """At the top level, all imports and functions are variables, but of no use in an event."""
    code = compile(
        "import json\ndef f(): pass\nclass C: pass\nn = 7\nraise ValueError", "/srv/top.py", "exec"
    )
    namespace: dict[Any, Any] = {"__name__": "top", Opaque: 1}
    assert variables_of(lambda: exec(code, namespace)) == {"n": 7}


def test_a_namespace_of_the_apps_own_runs_no_code() -> None:
    """A metaclass may prepare any mapping for a class body."""

    class Names(dict[str, Any]):
        def items(self) -> Any:
            raise AssertionError("called")

    class Mapping:
        def __init__(self) -> None:
            self.held: dict[str, Any] = {}

        def __getitem__(self, name: str) -> Any:
            return self.held[name]

        def __setitem__(self, name: str, value: Any) -> None:
            self.held[name] = value

    code = compile("n = 7\nraise ValueError", "/srv/body.py", "exec")
    assert variables_of(lambda: exec(code, {"__name__": "body"}, Names())) == {"n": 7}
    assert variables_of(lambda: exec(code, {"__name__": "body"}, Mapping())) == {}  # type: ignore[arg-type]


def test_names_that_are_no_identifiers_are_counted_and_hidden_alike() -> None:
    """A module's dict may have any keys; names made by the compiler are left out."""
    code = compile("raise ValueError", "/srv/odd.py", "exec")
    namespace: dict[Any, Any] = {
        "__name__": "odd",
        "a b": 1,
        "\u00fc": 2,
        ".0": 3,
        "x" * 300: 4,
        7: 5,
        "to ken": 6,
    }
    assert variables_of(lambda: exec(code, namespace)) == {"a b": 1, "\u00fc": 2, "to ken": 6}


def test_an_empty_traceback_gives_no_frames() -> None:
    """Such as that of an exception that was never raised."""
    assert reader().frames(None, 250, Room(100)) == []


def test_a_traceback_begins_where_the_app_was_entered() -> None:
    """Every request's traceback starts in our middleware; an error of our own keeps its frames."""

    def entered(module: str, inner: str) -> BaseException:
        ours: dict[str, Any] = {"__name__": module}
        exec(compile("def call(app):\n    app()\n", "/srv/middleware.py", "exec"), ours)
        theirs: dict[str, Any] = {"__name__": inner}
        exec(compile("def app():\n    raise ValueError\n", "/srv/app.py", "exec"), theirs)
        try:
            ours["call"](theirs["app"])
        except ValueError as error:
            # Without the frame of this test.
            return error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        raise AssertionError("nothing was raised")

    def functions(error: BaseException) -> list[str]:
        return [frame["function"] for frame in reader().frames(error.__traceback__, 250, Room(10_000))]

    assert functions(entered("transport_kit_flask.layer", "shop")) == ["app"]
    assert functions(entered("transport_kit_flask.layer", "transport_kit.kit")) == ["app"]
    assert functions(entered("transport_kitchen", "shop")) == ["call", "app"]
