"""The errors: pickling, attributes, and their common base class."""

from __future__ import annotations

import copy
import pickle

import pytest

from transport_kit.config.dsn import Dsn
from transport_kit.config.options import IntegrationOptions, TransportOptions
from transport_kit.runtime import errors
from transport_kit.runtime.errors import (
    InvalidDsn,
    InvalidEnvelope,
    MissingExtra,
    OptionsError,
    SealError,
    TransportKitError,
)

SECRET = "s3cret-t0ken"
EXAMPLES = [
    (TransportKitError("plain"), "plain"),
    (OptionsError("proxy", "must be text", "settings.X"), "proxy (settings.X): must be text"),
    (
        MissingExtra("compression", "zstandard", "zstd", "environment"),
        "compression (environment): needs the package zstandard: pip install 'transport-kit[zstd]'",
    ),
    (InvalidDsn("invalid_port", "use a number"), "invalid DSN (invalid_port): use a number"),
    (
        InvalidEnvelope("truncated", 17, "3 of 5 bytes"),
        "invalid envelope (truncated) at byte 17: 3 of 5 bytes",
    ),
    (InvalidEnvelope("empty", -1, "no bytes"), "invalid envelope (empty): no bytes"),
    (SealError("event.extra.a[3]", "too deep"), "can't seal event.extra.a[3]: too deep"),
]
IDS = [f"{type(error).__name__}-{index}" for index, (error, _) in enumerate(EXAMPLES)]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(("error", "text"), EXAMPLES, ids=IDS)
def test_an_error_comes_back_whole_from_a_pickle(error: TransportKitError, text: str, protocol: int) -> None:
    """Process pools and task queues send exceptions to the parent, and hang if one can't be rebuilt."""
    back = pickle.loads(pickle.dumps(error, protocol=protocol))
    assert type(back) is type(error)
    assert vars(back) == vars(error)
    assert back.args == error.args
    assert str(back) == text


@pytest.mark.parametrize(("error", "text"), EXAMPLES, ids=IDS)
def test_an_error_is_copied_with_its_facts(error: TransportKitError, text: str) -> None:
    """Test runners and loggers copy exceptions."""
    assert str(copy.copy(error)) == text
    assert vars(copy.deepcopy(error)) == vars(error)


def test_one_base_catches_all() -> None:
    """A caller can catch all errors of this library with one name."""
    leaves = [getattr(errors, name) for name in errors.__all__]
    assert all(issubclass(leaf, TransportKitError) for leaf in leaves)
    assert all(issubclass(leaf, ValueError) for leaf in leaves if leaf is not TransportKitError)


def test_a_missing_extra_is_an_options_error_with_the_install_line() -> None:
    """The message contains the remedy; nothing is substituted silently."""
    error = MissingExtra("proxy", "PySocks", "socks")
    assert isinstance(error, OptionsError)
    assert (error.field, error.package, error.extra, error.source) == (
        "proxy",
        "PySocks",
        "socks",
        "arguments",
    )
    assert "pip install 'transport-kit[socks]'" in str(error)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Dsn.parse(f"https://{SECRET}:{SECRET}@host:x/1"),
        lambda: TransportOptions(proxy=f"http://user:{SECRET}@proxy\r\n"),
        lambda: TransportOptions(proxy_headers=(("Proxy-Authorization", f"{SECRET}\r\n"),)),
        lambda: TransportOptions(proxy_headers=(("Proxy-Authorization", SECRET.encode()),)),  # type: ignore[arg-type]
        lambda: TransportOptions(proxy_headers=(SECRET,)),  # type: ignore[arg-type]
        lambda: IntegrationOptions(flush_token=f"{SECRET}\n"),
        lambda: IntegrationOptions(flush_token=SECRET.encode()),  # type: ignore[arg-type]
        lambda: TransportOptions.from_mapping({"PROXY_HEADERS": [SECRET]}, source="settings"),
    ],
)
def test_an_error_about_a_secret_does_not_tell_it(wrong: object) -> None:
    """More people may read a log than may know the secret."""
    assert callable(wrong)
    with pytest.raises(TransportKitError) as caught:
        wrong()
    for shown in (str(caught.value), repr(caught.value), repr(caught.value.args)):
        assert SECRET not in shown
