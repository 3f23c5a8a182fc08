"""Objects: shown by fields, shape or class, without running the app's code."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import weakref
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.core.reporting_support import Kept, raised, reporter_for
from tests.timing import steps
from transport_kit.envelope import encoder
from transport_kit.reporting.values.bounded import Limits, Room, _classes, bounded
from transport_kit.reporting.values.secret_names import is_sensitive

LIMITS = Limits(text=512, breadth=10, depth=3, hides=is_sensitive)


def shown(value: Any, room: int = 2048) -> Any:
    """Return the value as an event shows it, checked to be strict JSON within its room."""
    found = bounded(value, Room(room), LIMITS)
    assert len(encoder.dumps(found)) <= room
    return found


@dataclasses.dataclass
class Address:
    """A plain dataclass."""

    street: str
    token: str = "hunter2"
    pin: str = dataclasses.field(default="hunter2", repr=False)


@dataclasses.dataclass(slots=True, frozen=True)
class Point:
    """A dataclass without an instance dict."""

    x: int
    y: Any


def test_a_dataclass_is_told_by_its_fields() -> None:
    """Without fields hidden by `repr=False`, and without values whose name marks a secret."""
    name = f"<{__name__}.Address>"
    assert shown(Address("Main St.")) == {"<class>": name, "street": "Main St.", "token": "[Filtered]"}
    assert shown(Point(1, Address("x"))) == {
        "<class>": f"<{__name__}.Point>",
        "x": 1,
        "y": {"<class>": name, "street": "x", "token": "[Filtered]"},
    }
    # Too deep, or too little room: the class alone.
    assert shown([[[Point(1, 2)]]]) == [[[f"<{__name__}.Point>"]]]
    assert shown(Point(1, 2), room=60).startswith("<")


class Login(NamedTuple):
    """A namedtuple, as apps use to return several values."""

    user: str
    password: str


class Unnamed(tuple[Any, ...]):
    """Has `_fields` of another length than its elements."""

    _fields = ("user",)


class Liar(tuple[Any, ...]):
    """Has `_fields` with another meaning."""

    _fields = property(lambda self: 1 / 0)


def test_a_namedtuple_is_told_by_its_names() -> None:
    """In a plain list, a password would have no name by which to recognise it."""
    assert shown(Login("bob", "hunter2")) == {"user": "bob", "password": "[Filtered]"}
    assert shown([Login("bob", "hunter2")]) == [{"user": "bob", "password": "[Filtered]"}]
    assert shown(Unnamed((1, 2, 3))) == [1, 2, 3]
    assert shown(Liar((1, 2, 3))) == [1, 2, 3]


def test_a_dataclass_that_is_half_built_shows_what_it_has() -> None:
    """`__init__` may be the function that failed."""
    assert shown(Point.__new__(Point)) == {"<class>": f"<{__name__}.Point>"}
    assert shown(Address.__new__(Address)) == {"<class>": f"<{__name__}.Address>"}


def test_no_property_and_no_hook_of_a_class_runs() -> None:
    """A property may read a database, and a `__getattr__` may never end."""

    @dataclasses.dataclass
    class Trap:
        name: str = "trap"

        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise AssertionError("asked")

        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

        def __repr__(self) -> str:
            raise AssertionError("asked")

    trap = object.__new__(Trap)
    # Its own `__dict__` hides the one that holds the fields: another base would have it.
    assert shown(trap)["<class>"].endswith("Trap>")


@pytest.mark.parametrize("marker", ["__dataclass_fields__", "__attrs_attrs__", "__pydantic_fields__"])
@pytest.mark.parametrize("fields", [None, 7, {"a": 1}, (1, 2), "ab"])
def test_a_class_that_only_pretends_is_told_by_its_name(marker: str, fields: Any) -> None:
    """The marker attributes of other libraries may have another meaning in an app's class."""
    cls = type("Pretends", (), {marker: fields})
    assert shown(cls()) == f"<{__name__}.Pretends>"


def test_a_metaclass_that_guards_its_classes_is_not_asked() -> None:
    """A class as a dict key would be hashed and compared by its metaclass, which is the app's code."""

    class Meta(type):
        def __hash__(cls) -> int:
            raise AssertionError("asked")

        def __eq__(cls, other: object) -> bool:
            raise AssertionError("asked")

        def __getattribute__(cls, name: str) -> Any:
            raise AssertionError(name)

    odd = type.__call__(Meta, "Odd", (), {})
    assert shown(object.__new__(odd)) == f"<{__name__}.Odd>"
    assert shown(object.__new__(odd)) == f"<{__name__}.Odd>"


@pytest.mark.parametrize("slots", [False, True])
def test_a_class_made_in_a_request_is_not_kept_alive(slots: bool) -> None:
    """Caching classes would leak memory in an app that creates them."""
    cls = dataclasses.make_dataclass("Made", ["a"], slots=slots)
    assert shown(cls(1))["a"] == 1
    ref = weakref.ref(cls)
    del cls
    gc.collect()
    assert ref() is None


def test_what_is_remembered_of_classes_is_bounded() -> None:
    """An app may create any number of classes."""
    for number in range(5000):
        shown(type(f"C{number}", (), {})())
    assert len(_classes) <= 4096


def test_attrs_classes_are_told_by_their_fields() -> None:
    """With an instance dict and with slots; hidden fields stay hidden."""
    attrs = importlib.import_module("attrs")

    @attrs.define  # type: ignore[untyped-decorator,unused-ignore]
    class Slotted:
        name: str
        password: str = "hunter2"
        pin: str = attrs.field(default="hunter2", repr=False)

    @attrs.define(slots=False)
    class Plain:
        name: str

    slotted = shown(Slotted(name="bob"))  # type: ignore[call-arg]
    assert {key: slotted[key] for key in ("name", "password")} == {"name": "bob", "password": "[Filtered]"}
    assert "pin" not in slotted
    plain = Plain(name="bob")  # type: ignore[call-arg]
    assert shown(plain)["name"] == "bob"


def test_pydantic_models_are_told_by_their_fields() -> None:
    """As FastAPI passes them to every view."""
    pydantic = importlib.import_module("pydantic")

    class Login(pydantic.BaseModel):  # type: ignore[misc,name-defined]
        user: str
        password: str
        card: pydantic.SecretStr  # type: ignore[name-defined]
        pin: str = pydantic.Field(default="hunter2", repr=False)

        @pydantic.computed_field  # type: ignore[prop-decorator,untyped-decorator]
        @property
        def costly(self) -> str:
            raise AssertionError("asked")

    found = shown(Login(user="bob", password="hunter2", card="hunter2"))
    assert (found["user"], found["password"], found["card"]) == (
        "bob",
        "[Filtered]",
        "<pydantic.types.SecretStr>",
    )
    assert "hunter2" not in str(found)


def test_arrays_and_tables_are_told_by_their_shape() -> None:
    """Their values would fill the event and help nobody."""
    numpy, pandas = importlib.import_module("numpy"), importlib.import_module("pandas")
    assert shown(numpy.zeros((3, 4))) == "<numpy.ndarray shape (3, 4) of float64>"
    assert shown(numpy.float64(1.5)) == 1.5
    assert shown(numpy.int64(3)) == "<numpy.int64>"
    frame = pandas.DataFrame({"a": [1, 2, 3]})
    assert shown(frame).endswith("DataFrame shape (3, 1)>")
    assert shown(frame["a"]).endswith("Series shape (3,)>")

    class Mine(numpy.ndarray):  # type: ignore[misc,name-defined]
        @property
        def shape(self) -> Any:
            raise AssertionError("asked")

    assert shown(numpy.zeros(3).view(Mine)) == f"<{__name__}.{Mine.__qualname__}>"


def test_a_table_that_is_half_built_is_told_by_its_class() -> None:
    """An error in a constructor has such an object among its variables."""
    pandas = importlib.import_module("pandas")
    assert "DataFrame" in shown(pandas.DataFrame.__new__(pandas.DataFrame))


def test_lazy_objects_are_not_evaluated() -> None:
    """A queryset would run a query; a context local outside of its context raises."""
    functional = importlib.import_module("django.utils.functional")
    local = importlib.import_module("werkzeug.local")

    def never() -> Any:
        raise AssertionError("evaluated")

    assert "SimpleLazyObject" in shown(functional.SimpleLazyObject(never))
    assert "__proxy__" in shown(functional.lazystr("text")) or shown(functional.lazystr("text")) == "text"
    proxy: Any = local.LocalProxy(never)
    assert shown({"request": proxy, "n": 1}) == {"request": "<werkzeug.local.LocalProxy>", "n": 1}


def test_a_queryset_sends_no_query() -> None:
    """During an error, the query would fail again or block the broken transaction."""
    django = importlib.import_module("django")
    from django.conf import settings as django_settings

    if not django_settings.configured:
        django_settings.configure(DATABASES={}, INSTALLED_APPS=[])
        django.setup()
    from django.db.models import Model
    from django.db.models.query import QuerySet

    class Order(Model):
        class Meta:
            app_label = "shop"

    assert shown(QuerySet(Order)) == "<django.db.models.query.QuerySet>"
    assert shown({"orders": QuerySet(Order), "one": Order()})["one"].endswith("Order>")


class Hostile:
    """Raises or lies in every method, and counts the accesses."""

    asked = 0

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(self) -> str:
        Hostile.asked += 1  # would be 100 MB
        return "<hostile>"

    def __len__(self) -> int:
        raise RuntimeError("len")

    def __iter__(self) -> Any:
        while True:
            yield 1

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    __hash__ = object.__hash__


class Growing(dict[Any, Any]):
    """Changes while it is read."""

    def items(self) -> Any:
        self[len(self)] = 1
        raise RuntimeError("items")

    def __iter__(self) -> Any:
        self[len(self)] = 1
        raise RuntimeError("iter")


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**63, max_value=2**4000)
    | st.floats()
    | st.text()
    | st.text(st.characters(categories=["Cs"]))
    | st.binary()
    | st.datetimes()
    | st.decimals()
    | st.uuids()
    | st.complex_numbers()
    | st.builds(Hostile)
    | st.builds(Growing)
    | st.builds(Point, st.integers(), st.text())
    | st.sampled_from([object(), len, int, ..., dataclasses, "x" * 20_000, b"y" * 20_000, range(10**9)])
)
graphs = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=30)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.none(), inner, max_size=30)
        | st.builds(Point, st.integers(), inner)
        | st.frozensets(st.integers() | st.text(), max_size=20)
    ),
    max_leaves=60,
)


def cyclic(value: Any) -> Any:
    """Return the value within containers that hold themselves."""
    held: dict[str, Any] = {"value": value}
    held["self"] = held
    held["list"] = [held, [held]]
    return held


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@example(value=[("x" * 1_000_000, None)] * 5)
@settings(suppress_health_check=list(HealthCheck))
@given(value=graphs)
def test_any_object_graph_becomes_a_valid_event_in_time(value: Any) -> None:
    """As variable, argument, extra, breadcrumb, context or event: at most a megabyte, in bounded time."""
    with Kept() as kept:
        reporter = reporter_for(kept)

        def fail(argument: Any) -> None:
            held = cyclic(argument)
            raise ValueError(argument, held)

        try:
            fail(value)
        except ValueError as caught:
            error = caught
        asked = Hostile.asked
        ids: list[str | None] = []

        def capture() -> None:
            with reporter.request(named=lambda: ("/", "url")) as served:
                scope = served.scope
                scope.set_extra("value", value)
                scope.set_context("value", {"value": value})
                scope.set_tag("value", value)
                scope.set_user({"id": value, "value": value})
                scope.add_breadcrumb("m", data={"value": value})
                ids.append(reporter.capture_exception(error))

        assert steps(capture) < 150_000
        ids.append(reporter.capture_event({"extra": {"value": value}}))
        assert None not in ids
        assert Hostile.asked == asked
        for sealed in kept.sealed:
            assert len(sealed) <= 1_000_000 + 1000
        assert [event["event_id"] for event in kept.events] == ids


def test_twenty_frames_of_large_variables_stay_small_and_fast() -> None:
    """The worst usual case: a recursion with a page's data in each frame."""

    def call(depth: int) -> None:
        page = [{"id": number, "text": "x" * 1000, "tags": ["a", "b"] * 100} for number in range(1000)]
        if depth == 0:
            raise ValueError(page)
        call(depth - 1)

    with Kept() as kept:
        reporter = reporter_for(kept)
        reporter.capture_exception(raised(KeyError("warm")))

        with pytest.raises(ValueError, match="x") as caught:
            call(20)
        assert steps(lambda: reporter.capture_exception(caught.value)) < 60_000
        assert len(kept.sealed[-1]) < 200_000
