"""The DSN: every vector, hostile texts, and secrecy of the key."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import string
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.timing import growth
from transport_kit.config.dsn import Dsn
from transport_kit.runtime.errors import InvalidDsn

KEY = "e12d836b15bb49d7bbf99e64295d995b"
SECRET = "s3cretS3cret"
VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "dsn_vectors.json").read_text(encoding="utf-8")
)["vectors"]
REASONS = {
    "invalid_url",
    "invalid_scheme",
    "missing_public_key",
    "missing_host",
    "invalid_port",
    "missing_project_id",
    "invalid_project_id",
}


def parsed(text: str) -> Dsn | InvalidDsn:
    try:
        return Dsn.parse(text)
    except InvalidDsn as error:
        return error


def whole_text(error: BaseException) -> str:
    """Return everything of an error that a log may show: its text, repr, arguments and causes."""
    text = "".join(traceback.format_exception_only(error)) + repr(error) + repr(error.args)
    for cause in (error.__cause__, error.__context__):
        if cause is not None:
            text += whole_text(cause)
    return text


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["id"] for vector in VECTORS])
def test_every_vector_parses_or_is_refused_as_written(vector: dict[str, Any]) -> None:
    """The vectors show the protocol's grammar; a deviation would send envelopes to a wrong place."""
    if not vector["ok"]:
        # An empty DSN disables the transport, which the factory decides before it parses.
        reason = "invalid_url" if vector["error"] == "disabled" else vector["error"]
        with pytest.raises(InvalidDsn) as caught:
            Dsn.parse(vector["dsn"])
        assert caught.value.reason == reason
        return
    dsn = Dsn.parse(vector["dsn"])
    assert dsn.envelope_url == vector["envelope_url"]
    assert dsn.public_key == vector["public_key"]
    assert dsn.secret_key == vector["secret_key"]
    assert dsn.project_id == vector["project_id"]
    assert dsn.reveal() == vector["canonical"]


@pytest.mark.parametrize(
    ("text", "envelope_url"),
    [
        (f"  https://{KEY}@sentry.example/42\r\n", "https://sentry.example/api/42/envelope/"),
        (f"HTTPS://{KEY}@sentry.example/42", "https://sentry.example/api/42/envelope/"),
        (f"https://{KEY}@sentry.example/42?a=b", "https://sentry.example/api/42/envelope/"),
        (f"https://{KEY}@sentry.example/42#/7", "https://sentry.example/api/42/envelope/"),
        (f"https://{KEY}@sentry.example/42?x=/9@evil.example", "https://sentry.example/api/42/envelope/"),
        (f"http://{KEY}@sentry.example:80/42", "http://sentry.example/api/42/envelope/"),
        (f"http://{KEY}@sentry.example:/42", "http://sentry.example/api/42/envelope/"),
        (f"https://{KEY}@sentry.example:80/42", "https://sentry.example:80/api/42/envelope/"),
        (f"https://{KEY}@sentry.example:0443/42", "https://sentry.example/api/42/envelope/"),
        (f"https://{KEY}@sentry.example.:65535/42", "https://sentry.example.:65535/api/42/envelope/"),
        (f"http://{KEY}@relay_1:3000/42", "http://relay_1:3000/api/42/envelope/"),
        (f"http://{KEY}@[::1]:8000/42", "http://[::1]:8000/api/42/envelope/"),
        (f"https://{KEY}@[2001:DB8::A]/42", "https://[2001:db8::a]/api/42/envelope/"),
        (f"https://{KEY}@[2001:db8::a]:443/42", "https://[2001:db8::a]/api/42/envelope/"),
        (f"http://{KEY}@[fe80::1%25Eth0]/42", "http://[fe80::1%25Eth0]/api/42/envelope/"),
        (f"http://{KEY}@[fe80::1%Eth0]/42", "http://[fe80::1%25Eth0]/api/42/envelope/"),
        (f"http://{KEY}@[fe80::1%25]/42", "http://[fe80::1%2525]/api/42/envelope/"),
        (f"https://{KEY}@bücher.example/42", "https://xn--bcher-kva.example/api/42/envelope/"),
        (f"https://{KEY}@BÜCHER。example/42", "https://xn--bcher-kva.example/api/42/envelope/"),
        (f"https://{KEY}@sentry.example/a%2Fb/42", "https://sentry.example/a%2Fb/api/42/envelope/"),
        (f"https://{KEY}@sentry.example/ä/42", "https://sentry.example/%C3%A4/api/42/envelope/"),
        (f'https://{KEY}@sentry.example/"\\/42', "https://sentry.example/%22%5C/api/42/envelope/"),
        (f"https://{KEY}@sentry.example/a@b:c/42", "https://sentry.example/a@b:c/api/42/envelope/"),
    ],
)
def test_odd_but_usable_texts_give_one_canonical_address(text: str, envelope_url: str) -> None:
    """A DSN is pasted by hand: an unambiguous text is accepted, and its URL is ASCII."""
    dsn = Dsn.parse(text)
    assert dsn.envelope_url == envelope_url
    assert envelope_url.isascii()
    assert Dsn.parse(dsn.reveal()) == dsn


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "invalid_url"),
        (b"https://" + KEY.encode() + b"@sentry.example/42", "invalid_url"),
        (42, "invalid_url"),
        ("", "invalid_url"),
        (" \n", "invalid_url"),
        (f"https://{KEY}@sentry .example/42", "invalid_url"),
        (f"https://{KEY} @sentry.example/42", "invalid_url"),
        (f"https://{KEY}@sentry.example\u00a0/42", "invalid_url"),
        (f"\ufeffhttps://{KEY}@sentry.example/42", "invalid_url"),
        (f"https://{KEY}@sentry.example/42\ud800", "invalid_url"),
        (f"https://{KEY}@sentry.example/\u202e42", "invalid_url"),
        (f"{KEY}", "invalid_scheme"),
        (f"//{KEY}@sentry.example/42", "invalid_scheme"),
        (f"https:/{KEY}@sentry.example/42", "invalid_scheme"),
        (f"javascript://{KEY}@sentry.example/42", "invalid_scheme"),
        (f"http\u017f://{KEY}@sentry.example/42", "invalid_scheme"),
        ("https://", "missing_public_key"),
        ("https://@sentry.example/42", "missing_public_key"),
        (f"https://:{SECRET}@sentry.example/42", "missing_public_key"),
        (f"https://{KEY}?@sentry.example/42", "missing_public_key"),
        (f"https://{KEY}/@sentry.example/42", "missing_public_key"),
        (f"https://a@{KEY}@sentry.example/42", "invalid_url"),
        (f"https://{KEY}:{SECRET}@x@sentry.example/42", "invalid_url"),
        (f"https://{KEY},sentry_version=9@sentry.example/42", "invalid_url"),
        (f"https://{KEY}:{SECRET},x=y@sentry.example/42", "invalid_url"),
        (f"https://{KEY}é@sentry.example/42", "invalid_url"),
        (f"https://{KEY}\\@sentry.example/42", "invalid_url"),
        (f'https://{KEY}"@sentry.example/42', "invalid_url"),
        (f"https://{KEY}@/42", "missing_host"),
        (f"https://{KEY}@", "missing_host"),
        (f"https://{KEY}@sentry.example\\.evil.example/42", "invalid_url"),
        (f"https://{KEY}@sentry..example/42", "invalid_url"),
        (f"https://{KEY}@sentry%2eexample/42", "invalid_url"),
        (f"https://{KEY}@{'a' * 64}.example/42", "invalid_url"),
        (f"https://{KEY}@{'a.' * 130}example/42", "invalid_url"),
        (f"https://{KEY}@{'ä' * 64}.example/42", "invalid_url"),
        (f"https://{KEY}@ex℀mple.example/42", "invalid_url"),
        (f"https://{KEY}@::1/42", "invalid_url"),
        (f"https://{KEY}@::1:8000/42", "invalid_url"),
        (f"https://{KEY}@[]/42", "invalid_url"),
        (f"https://{KEY}@[::1]x/42", "invalid_url"),
        (f"https://{KEY}@[::1%25]x]/42", "invalid_url"),
        (f"https://{KEY}@[fe80::1%]/42", "invalid_url"),
        (f"https://{KEY}@[fe80::1%25e/h0]/42", "invalid_url"),
        (f"https://{KEY}@[fe80::1%e@h]/42", "invalid_url"),
        (f"https://{KEY}@[127.0.0.1]/42", "invalid_url"),
        (f"https://{KEY}@[v1.x]/42", "invalid_url"),
        (f"https://{KEY}@[::g]/42", "invalid_url"),
        (f"https://{KEY}@sentry.example:0/42", "invalid_port"),
        (f"https://{KEY}@sentry.example:65536/42", "invalid_port"),
        (f"https://{KEY}@sentry.example:-1/42", "invalid_port"),
        (f"https://{KEY}@sentry.example:+80/42", "invalid_port"),
        (f"https://{KEY}@sentry.example:8_0/42", "invalid_port"),
        (f"https://{KEY}@sentry.example:٨٠/42", "invalid_port"),
        (f"https://{KEY}@sentry.example:{'9' * 1500}/42", "invalid_port"),
        (f"https://{KEY}@[::1]:x/42", "invalid_port"),
        (f"https://{KEY}@sentry.example", "missing_project_id"),
        (f"https://{KEY}@sentry.example?42", "missing_project_id"),
        (f"https://{KEY}@sentry.example/a/b/", "missing_project_id"),
        (f"https://{KEY}@sentry.example/%34%32", "invalid_project_id"),
        (f"https://{KEY}@sentry.example/4.2", "invalid_project_id"),
        (f"https://{KEY}@sentry.example/..", "invalid_project_id"),
    ],
)
def test_hostile_texts_are_refused_without_showing_the_key(text: object, reason: str) -> None:
    """A wrong DSN ends up in a log line; neither that line nor a chained cause may contain the key."""
    with pytest.raises(InvalidDsn) as caught:
        Dsn.parse(text)
    shown = whole_text(caught.value)
    assert caught.value.reason == reason
    assert KEY not in shown
    assert SECRET not in shown


@pytest.mark.parametrize("code", [*range(32), 127, 0x85, 0x2028])
def test_a_control_character_anywhere_inside_is_refused(code: int) -> None:
    """URL parsers silently drop some of them, which moves the rest of the text to another part."""
    text = f"https://{KEY}@sentry.example:9000/a/42"
    for position in range(1, len(text)):
        with pytest.raises(InvalidDsn, match="invalid"):
            Dsn.parse(text[:position] + chr(code) + text[position:])


@pytest.mark.parametrize(
    "text",
    [
        f"https://{KEY}@sentry.example/" + "4" * 1_000_000,
        f"https://{KEY}@" + "ä" * 1_000_000 + "/42",
        f"https://{KEY}@" + "a." * 500_000 + "/42",
        "\n" * 1_000_000,
        f"https://{'@' * 1_000_000}/42",
        f"https://{KEY}@host/" + "/" * 1_000_000 + "42",
    ],
)
def test_a_megabyte_of_anything_fails_at_once(text: str) -> None:
    """No setting may delay an app's start, so the length is checked first."""

    def parse(text: str) -> None:
        with pytest.raises(InvalidDsn, match="at most 2048 characters"):
            Dsn.parse(text)

    # Some 250 times the length.
    assert growth(lambda: parse(text[:4096]), lambda: parse(text)) < 100


@given(st.text(alphabet=st.sampled_from(string.printable + "äß\ud800。\uff0f@:[]%"), max_size=80))
def test_any_text_parses_or_raises_invalid_dsn(tail: str) -> None:
    """A ValueError or UnicodeError of another library would take the app down."""
    dsn = parsed(f"https://{KEY}@{tail}")
    if isinstance(dsn, InvalidDsn):
        assert dsn.reason in REASONS
        assert KEY not in whole_text(dsn)
    else:
        assert dsn.envelope_url.isascii()
        assert dsn.envelope_url.isprintable()
        assert " " not in dsn.envelope_url
        assert Dsn.parse(dsn.reveal()) == dsn


@given(st.text(max_size=120))
def test_free_text_never_escapes_as_another_error(text: str) -> None:
    """The same for texts without a well-formed beginning."""
    dsn = parsed(text)
    if isinstance(dsn, InvalidDsn):
        assert dsn.reason in REASONS
    else:
        assert dsn.project_id.isdigit()


def test_the_auth_value_holds_key_version_and_client() -> None:
    """Receivers split it at commas; it contains the secret only if there is one."""
    plain = Dsn.parse(f"https://{KEY}@sentry.example/42")
    secret = Dsn.parse(f"https://{KEY}:{SECRET}@sentry.example/42")
    expected = f"Sentry sentry_key={KEY}, sentry_version=7, sentry_client=kit/1.0"
    assert plain.auth_header("kit/1.0") == expected
    assert secret.auth_header("kit/1.0") == f"{expected}, sentry_secret={SECRET}"


def test_neither_str_nor_repr_show_key_or_secret() -> None:
    """Both end up in logs and in the variables of captured stack frames."""
    dsn = Dsn.parse(f"https://{KEY}:{SECRET}@sentry.example:9000/a/42")
    assert str(dsn) == "https://***@sentry.example:9000/a/42"
    assert repr(dsn) == "Dsn('https://***@sentry.example:9000/a/42')"
    shown = {option.name for option in dataclasses.fields(dsn) if option.repr}
    assert shown.isdisjoint({"public_key", "secret_key"})
    assert f"{dsn}" == str(dsn)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_is_refused_and_says_what_to_do(protocol: int) -> None:
    """A pickle goes to queues, caches and other processes, and would contain the key."""
    dsn = Dsn.parse(f"https://{KEY}@sentry.example/42")
    with pytest.raises(TypeError, match=r"reveal\(\)") as caught:
        pickle.dumps(dsn, protocol=protocol)
    assert KEY not in whole_text(caught.value)


def test_copying_gives_the_same_dsn() -> None:
    """Frameworks deep-copy their settings; an immutable value need not be copied."""
    dsn = Dsn.parse(f"https://{KEY}@sentry.example/42")
    assert copy.copy(dsn) is dsn
    assert copy.deepcopy({"dsn": dsn})["dsn"] is dsn


def test_equal_dsns_are_equal_however_they_were_written() -> None:
    """Another spelling of an address is the same target, in comparisons and as a dict key."""
    first = Dsn.parse(f"https://{KEY}@Sentry.Example:443/42")
    second = Dsn.parse(f" https://{KEY}:@sentry.example/42?x")
    assert first == second
    assert len({first, second}) == 1
    assert first != Dsn.parse(f"https://{KEY}@sentry.example/43")
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.host = "evil.example"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("host", "org_id"),
    [
        ("o123.ingest.de.sentry.io", "123"),
        ("o7.sentry.example", "7"),
        ("o123", None),
        ("so123.ingest.sentry.io", None),
        ("ox1.sentry.example", None),
        ("sentry.example", None),
    ],
)
def test_the_organization_is_the_first_label_of_the_host(host: str, org_id: str | None) -> None:
    """Trace headers contain it; a label that only resembles one must not count."""
    assert Dsn.parse(f"https://{KEY}@{host}/42").org_id == org_id


@pytest.mark.parametrize(
    ("key", "looks_valid"),
    [(KEY, True), (KEY.upper(), True), (KEY[:-1], False), (KEY + "0", False), ("x" * 32, False)],
)
def test_a_key_that_is_not_32_hex_digits_is_usable_but_suspicious(key: str, looks_valid: bool) -> None:
    """Some receivers accept any key, most do not: a reason for a warning, not for a refusal."""
    dsn = Dsn.parse(f"https://{key}@sentry.example/42")
    assert dsn.key_looks_valid is looks_valid
    assert dsn.public_key == key


def test_a_percent_encoded_key_is_sent_as_written() -> None:
    """No receiver decodes the key, and decoding could put a comma into the auth value."""
    dsn = Dsn.parse("https://a%2Cb:c%40:d@sentry.example/42")
    assert dsn.public_key == "a%2Cb"
    assert dsn.secret_key == "c%40:d"
    assert "sentry_key=a%2Cb, " in dsn.auth_header("kit/1.0")


def test_origin_and_host_differ_only_in_brackets_and_zone_encoding() -> None:
    """A socket needs the bare address, a URL the encoded one."""
    dsn = Dsn.parse(f"http://{KEY}@[FE80::1%25eth0]:8000/42")
    assert dsn.host == "fe80::1%eth0"
    assert dsn.port == 8000
    assert dsn.origin == "http://[fe80::1%25eth0]:8000"
