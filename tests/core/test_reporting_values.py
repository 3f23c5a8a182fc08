"""Values and scrubbing: any object as a small piece of strict JSON, and no secret in it."""

from __future__ import annotations

import collections
import enum
import math
import re
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.timing import growth, steps
from transport_kit.envelope import encoder
from transport_kit.reporting.exceptions import exception_values
from transport_kit.reporting.frames import FrameReader
from transport_kit.reporting.values import secret_names
from transport_kit.reporting.values.bounded import MINIMUM, Limits, Room, bounded, class_name, cut
from transport_kit.reporting.values.scrub import scrub_cookies, scrub_query, scrub_text, scrub_userinfo
from transport_kit.reporting.values.secret_names import is_personal, is_private, is_sensitive

LIMITS = Limits(text=64, breadth=5, depth=3, hides=is_private)


def walked(value: object, room: int = 2048) -> Any:
    """Return the bounded value, checked to take no more bytes of JSON than there was room for."""
    left = Room(room)
    result = bounded(value, left, LIMITS)
    assert len(encoder.dumps(result)) <= room - left.left <= room
    return result


class Colour(enum.IntEnum):
    RED = 1


class Word(str):
    """A string whose own methods must not be called."""

    __slots__ = ()

    def __str__(self) -> str:
        raise AssertionError("called")

    __repr__ = __str__
    __len__ = __getitem__ = __iter__ = encode = __str__  # type: ignore[assignment]


class Number(int):
    """An int whose own methods must not be called."""

    def __int__(self) -> int:
        raise AssertionError("called")

    __index__ = __repr__ = __str__ = __lt__ = __le__ = __neg__ = __int__  # type: ignore[assignment]


class Ratio(float):
    """A float whose own methods must not be called."""

    def __float__(self) -> float:
        raise AssertionError("called")

    __repr__ = __str__ = __float__  # type: ignore[assignment]


class Point(NamedTuple):
    x: int
    y: int


class Meta(type):
    """A metaclass whose methods raise or lie."""

    def __getattribute__(cls, name: str) -> Any:
        raise AssertionError(name)

    def __instancecheck__(cls, instance: object) -> bool:
        raise AssertionError("called")


class Odd(metaclass=Meta):
    pass


class Proxy:
    """Looks its class up in a context that has ended, like a request proxy."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("working outside of request context")


#: Values and what becomes of them; kept out of parameter ids, for showing one may fail.
TOLD: list[tuple[Any, Any]] = [
    (None, None),
    (True, True),
    (7, 7),
    (2**63 - 1, 2**63 - 1),
    (-(2**63), -(2**63)),
    (2**64, "18446744073709551616"),
    (10**5000, "<int of 16610 bits>"),
    (0.5, 0.5),
    (math.nan, "nan"),
    (-math.inf, "-inf"),
    ("bob", "bob"),
    ("x" * 65, "x" * 61 + "..."),
    ("\ud800", "\\ud800"),
    ("\x00", "\x00"),
    (b"raw", "<builtins.bytes>"),
    ([1, [2, [3, [4]]]], [1, [2, [3, "<builtins.list>"]]]),
    (list(range(9)), [0, 1, 2, 3, 4, "<4 more>"]),
    ({n: n for n in range(9)}, {"0": 0, "1": 1, "2": 2, "3": 3, "4": 4, "...": "<4 more>"}),
    ({1}, [1]),
    (frozenset(), []),
    ({None: 1, 0.5: 2, (1,): 3, "\ud800": 4}, {"None": 1, "0.5": 2, "(1,)": 3, "\\ud800": 4}),
    ({2**70: 1}, {str(2**70): 1}),
    (collections.OrderedDict(a=1), {"a": 1}),
    (collections.deque([1]), "<collections.deque>"),
    (Point(1, 2), {"x": 1, "y": 2}),
    (Colour.RED, 1),
    (Word("word"), "word"),
    (Number(7), 7),
    (Ratio(0.5), 0.5),
    ({Word("token"): 1}, {"token": "[Filtered]"}),
    (ValueError("x"), "<builtins.ValueError>"),
    (len, "<builtins.builtin_function_or_method>"),
    (Odd(), f"<{__name__}.Odd>"),
    (Odd, f"<{__name__}.Meta>"),
    (Proxy(), f"<{__name__}.Proxy>"),
    (("password", "x"), ["password", "[Filtered]"]),
    (("name", "x"), ["name", "x"]),
    (("password", "x", "y"), ["password", "x", "y"]),
]


@pytest.mark.parametrize("number", range(len(TOLD)))
def test_a_value_is_told_without_asking_it(number: int) -> None:
    """None of the app's code runs: a `__repr__` may be slow, raise, or show a password."""
    value, expected = TOLD[number]
    assert walked(value) == expected


def test_what_contains_itself_ends() -> None:
    """Such as a parent that holds its children, which hold the parent."""
    loop: list[Any] = []
    loop.append(loop)
    assert walked(loop) == [[["<builtins.list>"]]]


def test_a_class_without_a_usable_module_has_a_name_nevertheless() -> None:
    """`__module__` may have any value, and a class made by `exec` may have none."""
    odd = type("Odd", (), {"__module__": 7})
    assert class_name(odd) == "?.Odd"
    namespace: dict[str, Any] = {}
    exec("Missing = type('Missing', (), {})", namespace)
    assert class_name(namespace["Missing"]) == "?.Missing"


def test_a_container_that_changes_meanwhile_is_told_by_its_class_at_worst() -> None:
    """Other request threads keep changing their dicts while one thread reports."""
    shared: dict[int, int] = {}
    members: set[int] = set()
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            number = (number + 1) % 500
            shared[number] = number
            members.add(number)
            shared.pop((number * 7) % 500, None)
            members.discard((number * 7) % 500)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(2000):
            walked(shared)
            walked(members)
    finally:
        stop.set()
        thread.join(timeout=30)
    assert not thread.is_alive()


def test_a_container_that_can_not_be_read_is_told_by_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an interpreter without a global lock, a read may fail half-way."""
    from transport_kit.reporting.values import bounded as values

    def fails(*args: object) -> Any:
        raise RuntimeError("changed size during iteration")

    monkeypatch.setattr(values, "islice", fails)
    assert walked({1: 2}) == "<builtins.dict>"


@pytest.mark.parametrize("room", [MINIMUM, 30, 40, 64, 100, 200])
@pytest.mark.parametrize(
    "value",
    [
        "x" * 1000,
        "\n" * 1000,
        "\U0001f600" * 1000,
        ["x" * 30] * 5,
        {"key" * 10: "x" * 30, "token": 1, "b": [1, 2, 3]},
        [[[["x"]]]] * 9,
        {str(n): n for n in range(9)},
    ],
)
def test_a_walk_never_takes_more_room_than_it_has(value: object, room: int) -> None:
    """Servers refuse an event above the limit, and all of it is lost."""
    assert walked(value, room) is not None


def test_a_cut_leaves_exact_text() -> None:
    """A strict encoder would refuse a subclass of str."""
    for text in (cut(Word("word"), 10), cut(Word("word" * 10), 10)):
        assert type(text) is str
    assert str.__len__(cut(Word("word" * 10), 10)) == 10


@pytest.mark.parametrize(
    "name",
    [
        "Authorization", "X-Auth-Token", "token", "SECRET_KEY", "my_password", "PASSWD", "db_pwd", "api_key",
        "privateKey", "jwt", "Bearer", "sso_id", "saml_response", "X-CSRFToken", "xsrf", "credentials",
        "session", "sessionid", "PHPSESSID", "connect.sid", "sid", "Set-Cookie", "HTTP_COOKIE", "identity",
    ],
)  # fmt: skip
def test_names_of_secrets_are_known(name: str) -> None:
    """The protocol's deny-list, in any case and anywhere in the name."""
    assert is_sensitive(name)
    assert is_private(name)


@pytest.mark.parametrize(
    "name",
    [
        "X-Forwarded-For",
        "Forwarded",
        "REMOTE_ADDR",
        "remote-user",
        "REMOTE_HOST",
        "clientIpAddress",
        "ipaddr",
        "X-Real-IP",
        "ip_address",
        "CF-Connecting-IP",
        "client_ip",
        "ip",
    ],
)
def test_names_of_addresses_are_known(name: str) -> None:
    """They identify the client: hidden without `send_default_pii`."""
    assert is_personal(name)
    assert is_private(name)
    assert not is_sensitive(name)


def test_long_names_are_searched_and_not_remembered() -> None:
    """Clients choose the names of headers and cookies; caching them would fill the memory."""
    before = secret_names._cached_search.cache_info().currsize
    assert is_sensitive("x" * 100_000 + "token")
    assert is_private("remote_addr" + "x" * 100_000)
    assert not is_personal("x" * 100_000)
    assert secret_names._cached_search.cache_info().currsize == before


@pytest.mark.parametrize(
    "name", ["user_id", "description", "recipe", "side", "X-Forwarded-Proto", "Accept", "zip"]
)
def test_other_names_are_left_alone(name: str) -> None:
    """A filtered value can't help to find the error."""
    assert not is_private(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://bob:pw@host/x", "https://[Filtered]@host/x"),
        ("https://bob:p@w@host/x", "https://[Filtered]@host/x"),
        ("https://key@host/1 and redis://:pw@h", "https://[Filtered]@host/1 and redis://[Filtered]@h"),
        ("https://host/a@b?c=d@e", "https://host/a@b?c=d@e"),
        ("mail bob@host", "mail bob@host"),
    ],
)
def test_credentials_in_urls_are_taken_out(text: str, expected: str) -> None:
    """A database URL in a message is the most common leak; an e-mail address is no credential."""
    assert scrub_userinfo(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/reset?token=abc&page=2", "/reset?token=[Filtered]&page=2"),
        ("host=db password=pw user=bob", "host=db password=[Filtered] user=bob"),
        ("User(name='bob', password='p w')", "User(name='bob', password='[Filtered]')"),
        ('{"a": 1, "api_key": "p\\"w", "b": 2}', '{"a": 1, "api_key": "[Filtered]", "b": 2}'),
        ('{"secret": 123}', '{"secret": [Filtered]}'),
        ("{'token': 'cut he", "{'token': '[Filtered]'"),
        ('password="cut \\', 'password="[Filtered]"'),
        ("error = password=pw", "error = password=[Filtered]"),
        ("failed: api_key: pw!", "failed: api_key: [Filtered]"),
        ("refresh_token: pw", "refresh_token: [Filtered]"),
        ("accessToken: pw", "accessToken: [Filtered]"),
        ("privateKey: pw", "privateKey: [Filtered]"),
        ("monkey: banana", "monkey: banana"),
        ("clientSecret: pw", "clientSecret: [Filtered]"),
        ("db_passwd: pw", "db_passwd: [Filtered]"),
        ("passphrase: pw", "passphrase: [Filtered]"),
        ("db-pwd: pw", "db-pwd: [Filtered]"),
        ("Cookie: theme=pw; n=5", "Cookie: [Filtered]"),
        ("Set-Cookie: theme=pw; Path=/", "Set-Cookie: [Filtered]"),
        ("Proxy-Authorization: NTLM pw pw", "Proxy-Authorization: [Filtered]"),
        ("X-CSRF-Token: p w", "X-CSRF-Token: [Filtered]"),
        ("{'token': b'pw', 'n': 1}", "{'token': [Filtered], 'n': 1}"),
        ("<QueryDict: {'password': ['pw', 'pw'], 'n': 1}>", "<QueryDict: {'password': [Filtered], 'n': 1}>"),
        ('{\\"secret\\": \\"pw\\", \\"n\\": 1}', '{\\"secret\\": \\"[Filtered]\\", \\"n\\": 1}'),
        ("h['X-Api-Key'] = 'pw' # set", "h['X-Api-Key'] = '[Filtered]' # set"),
        ("mysql --password pw shop", "mysql --password [Filtered] shop"),
        ("run --keep --verbose now", "run --keep --verbose now"),
        ("<a><key>pw</key><b>c</b></a>", "<a><key>[Filtered]</key><b>c</b></a>"),
        ("<s:Password t='x'><![CDATA[p w]]></s:Password>", "<s:Password t='x'>[Filtered]</s:Password>"),
        ("<key><![CDATA[a]b]]]></key><n>1</n>", "<key>[Filtered]</key><n>1</n>"),
        ("<key> <![CDATA[a<b>c</d>]]></key><n>1</n>", "<key>[Filtered]</key><n>1</n>"),
        ("<b><![CDATA[<key>pw</key>]]></b>", "<b><![CDATA[<key>[Filtered]</key>]]></b>"),
        ("<n>1</n><privateKey>MIIE...", "<n>1</n><privateKey>[Filtered]"),
        ("<n>1</n><key><![CDATA[pw...", "<n>1</n><key>[Filtered]"),
        ("<Session object at 0x7f> and much more...", "<Session object at 0x7f> and much more..."),
        ('<key id="1" >pw</key ><n>1</n>', '<key id="1" >[Filtered]</key ><n>1</n>'),
        ("<b><token/>text</b>", "<b><token/>text</b>"),
        ("mysql --password 'pw' shop", "mysql --password '[Filtered]' shop"),
        ('mysql --password "p w" shop', 'mysql --password "[Filtered]" shop'),
        ("run --db.password pw", "run --db.password [Filtered]"),
        ("[b'--password', b'pw', b'shop']", "[b'--password', b'[Filtered]', b'shop']"),
        ("'run --token' 'and more'", "'run --token' 'and more'"),
        ("<Session 5> has ended, <Token> too", "<Session 5> has ended, <Token> too"),
        ("unexpected token: comma", "unexpected token: comma"),
        ("the keys: a, b", "the keys: a, b"),
        ("key: value in prose", "key: value in prose"),
        ("a token without a value", "a token without a value"),
        ("x=1", "x=1"),
    ],
)
def test_values_of_sensitive_pairs_are_taken_out_of_text(text: str, expected: str) -> None:
    """A query string, a form body and JSON in a variable contain names too."""
    assert scrub_text(text) == expected


#: What a credential is made of beside its prefix; long enough for all of them.
TAIL = "Zq70Xw9Lm3Kp8Rt5Vb2N"


@pytest.mark.parametrize(
    "credential",
    [
        *(f"gh{kind}_{TAIL}" for kind in "oprsu"),
        f"github_pat_{TAIL}_{TAIL}",
        f"glpat-{TAIL}",
        *(f"xox{kind}-12345678-{TAIL}" for kind in "abeoprs"),
        *(f"{kind}_{mode}_{TAIL}" for kind in ("sk", "rk") for mode in ("live", "test")),
        "AKIAIOSFODNN7EXAMPLE",
        "ASIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln-_Q",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0",
    ],
)
@pytest.mark.parametrize("around", ["{}", "clone with {} failed", "('{}', 1)", "user:{}@", "a.{}"])
def test_credentials_are_known_by_their_own_form(credential: str, around: str) -> None:
    """Keys of GitHub, GitLab, Slack, Stripe and AWS have prefixes, and are recognised anywhere."""
    assert scrub_text(around.format(credential)) == around.format("[Filtered]")


@pytest.mark.parametrize(
    "text",
    [
        "ghp_short and gh_pages",
        f"aghp_{TAIL}",
        "glpat-short",
        "xoxb-short",
        f"xoxz-{TAIL}",
        "sk_live_short",
        f"task_live_{TAIL}",
        "AKIAIOSFODNN7EXAMPLES",
        "AKIAiosfodnn7example",
        "XAKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9",
        f"keyJhbGciOiJIUzI1NiJ9.{TAIL}",
    ],
)
def test_what_only_resembles_a_credential_is_left_alone(text: str) -> None:
    """A word with a similar beginning may explain the error."""
    assert scrub_text(text) == text


@pytest.mark.parametrize("scheme", ["Bearer", "Basic", "Digest", "Negotiate"])
@pytest.mark.parametrize("spelling", [str, str.lower, str.upper])
@pytest.mark.parametrize("value", ["YIIZrQYGKwYBBQUCoIIZoTCC", "abcdef=", "a1b2c3", "ab.cd-ef", "ABCDEF"])
def test_credentials_after_their_scheme_are_taken_out(
    scheme: str, spelling: Callable[[str], str], value: str
) -> None:
    """The error text of a proxy repeats the value of the header without its name."""
    assert scrub_text(f"got {spelling(scheme)} {value}, 407") == f"got {spelling(scheme)} [Filtered], 407"


@pytest.mark.parametrize(
    "text", ["basic authentication", "the bearer lost it", "a digest of 5", "negotiate terms"]
)
def test_a_scheme_s_name_in_prose_is_left_alone(text: str) -> None:
    """The names of schemes are ordinary words, too."""
    assert scrub_text(text) == text


@pytest.mark.parametrize(
    ("head", "unit", "tail"),
    [
        ("", "a", ""),
        ("", "token=", ""),
        ("", "token='", ""),
        ("", 'token="\\', ""),
        ("", "://", ""),
        ("", "://a@", ""),
        ("token", "a.-", ""),
        ("key: {", "a_key : ", ""),
        ('token="', '\\"a\\": \\"', ""),
        ("", "--a", "key=1"),
        ("token='", "'] = ", ""),
        ("key=1", " \t", ""),
        ("", "<key", ""),
        ("", "<key>", ""),
        ("<key ", "a", ""),
        ("<key", " ", ""),
        ("", "<key a=", ""),
        ("", "<key><![CDATA[", ""),
        ("<key><![CDATA[", "]", ""),
        ("<key>", " ", "<key>"),
        ("", "<keya", ">x"),
        ("", "<key>x...", ""),
        ("", "--key '", ""),
        ("", "--key', ", ""),
    ],
)
def test_scrubbing_takes_linear_time(head: str, unit: str, tail: str) -> None:
    """With a pattern that backtracks, one header could stall the app."""

    def scrub_some(size: int) -> None:
        scrub_text(head + unit * (size // len(unit)) + tail)

    # Sixteen times the length: a square would be 256 times the work.
    assert growth(lambda: scrub_some(8_000), lambda: scrub_some(128_000)) < 64


def test_a_password_at_the_cut_is_filtered_before_the_cut() -> None:
    """The `@` by which it is recognised may be behind the cut."""
    assert "hunter2" not in walked("x" * 40 + " https://bob:hunter2" + "y" * 100 + "@host/")


def test_query_strings_keep_their_names() -> None:
    """Percent-encoded names are decoded, as the server does."""
    query = "a=1&tok%65n=x&flag&client_ip=192.0.2.7&="
    assert scrub_query(query, send_pii=True) == "a=1&tok%65n=[Filtered]&flag&client_ip=192.0.2.7&="
    assert scrub_query(query, send_pii=False) == "a=1&tok%65n=[Filtered]&flag&client_ip=[Filtered]&="


def test_a_cookie_header_that_can_not_be_read_is_filtered_whole() -> None:
    """Guessing where its names end would send a session id."""
    assert scrub_cookies("theme=dark; sessionid=abc") == "theme=dark; sessionid=[Filtered]"
    assert scrub_cookies("abc; theme=dark") == "[Filtered]"


# -- any value at all ----------------------------------------------------------------------------------


class Hostile(Exception):
    """Raises on every attribute access."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


AWKWARD: list[Any] = [
    Hostile("x"),
    Odd(),
    Odd,
    Proxy(),
    Colour.RED,
    Word("w"),
    Number(3),
    Ratio(1.5),
    object(),
    len,
    type,
    ...,
]


def _awkward(number: int) -> Any:
    return AWKWARD[number]


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**2000), max_value=2**2000),
    st.floats(),
    st.text(st.characters(), max_size=30),
    st.text(st.characters(categories=["Cs", "Cc"]), max_size=10),
    st.binary(max_size=30),
    st.complex_numbers(),
    st.datetimes(),
    st.uuids(),
    st.decimals(),
    st.integers(min_value=0, max_value=len(AWKWARD) - 1).map(_awkward),
)
KEYS = st.one_of(st.text(max_size=10), st.integers(), st.none(), st.binary(max_size=5), st.just("password"))
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=15),
        st.dictionaries(KEYS, inner, max_size=15),
        st.tuples(inner, inner),
        st.builds(collections.deque, st.lists(inner, max_size=3)),
    ),
    max_leaves=40,
)


@given(ANYTHING)
def test_any_value_becomes_strict_json_within_its_room(value: object) -> None:
    """Whatever value a variable has, its event must be sent."""
    walked(value)


@given(
    st.lists(ANYTHING, max_size=4),
    st.lists(ANYTHING, max_size=3),
    st.sampled_from([ValueError, KeyError, OSError, Hostile]),
)
def test_any_exception_becomes_strict_json_quickly(
    args: list[Any], held: list[Any], kind: type[Exception]
) -> None:
    """Arguments and variables of any kind make a valid event in a short time."""

    def fail(local: list[Any], first: Any) -> None:
        raise kind(*args)

    try:
        fail(held, held[0] if held else None)
    except Exception as error:
        frames = FrameReader((), (), send_pii=False)
        values: list[dict[str, Any]] = []
        read = partial(exception_values, error, frames, mechanism="m", handled=True)
        assert steps(lambda: values.extend(read())) < 50_000
        assert len(encoder.dumps(values)) < 100_000
        assert values[-1]["stacktrace"]["frames"][-1]["vars"]["local"] is not None


def test_cookies_of_an_address_are_left_to_whoever_asks_for_them() -> None:
    """Cookie headers are sent with PII only; without the names of the cookies they would be useless."""
    assert scrub_cookies("client_ip=192.0.2.7; sid=1") == "client_ip=192.0.2.7; sid=[Filtered]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("basic abcd1f", "basic [Filtered]"),
        ("bearer abcdefgh12345", "bearer [Filtered]"),
        ("AKIAIOSFODNN7EXAMPLE", "[Filtered]"),
        ("ASIAIOSFODNN7EXAMPLE", "[Filtered]"),
    ],
)
def test_a_credential_is_found_in_a_text_of_its_own(text: str, expected: str) -> None:
    """It must be recognised without surrounding text and without signs of another pattern."""
    assert scrub_text(text) == expected


def searches(call: Callable[[], object]) -> int:
    """Count the searches and replacements by patterns that a call makes on its thread."""
    count = 0

    def profile(frame: FrameType, what: str, function: Any) -> None:
        nonlocal count
        count += what == "c_call" and type(getattr(function, "__self__", None)) is re.Pattern

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize(
    "text",
    [
        "checkout failed after three tries",
        "a well-known fact, in 3.5 words_",
        "https://host/cart",
        "mail bob@host: no answer",
        # Of the lengths around that of the shortest token, with signs of what is longer.
        "gh_ basic1",
        "a gh_ basic",
    ],
)
def test_a_text_without_a_sign_of_a_secret_is_hardly_searched(text: str) -> None:
    """Most texts hold no secret, and each pattern that looks for one costs a capture some microseconds."""
    # One search for names. One for tokens if a word is as long as a token; one for a scheme such as `basic`.
    assert searches(lambda: scrub_text(text)) <= (2 if "basic" in text or "https" in text else 1)
    assert searches(lambda: scrub_userinfo(text)) == 0


def test_a_text_with_a_sign_of_a_secret_is_searched() -> None:
    """Otherwise the count of searches above would hold for a counter that counts nothing."""
    assert searches(lambda: scrub_text("token=abc")) > 0


@pytest.mark.parametrize(("length", "again"), [(1, 0), (63, 0), (64, 0), (65, 3), (66, 3)])
def test_names_of_up_to_64_characters_are_searched_once(length: int, again: int) -> None:
    """Variables and headers have the same few names in every event; longer ones are a client's choice."""
    name = "~" * length
    is_private(name)
    assert searches(lambda: is_private(name)) == again


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mysql --password 'cut he", "mysql --password '[Filtered]'"),
        ('mysql --password "p w', 'mysql --password "[Filtered]"'),
        ('TOKEN="two \\\nlines" n=1', 'TOKEN="[Filtered]" n=1'),
        ("DB_PASSWORD: 'two \\\nlines'!", "DB_PASSWORD: '[Filtered]'!"),
    ],
)
def test_a_quoted_value_is_taken_out_whole(text: str, expected: str) -> None:
    """A command line is cut anywhere, and a quote may span lines: what is inside belongs to the secret."""
    assert scrub_text(text) == expected
