"""Content encodings: round trips, and an early error for a missing package."""

from __future__ import annotations

import importlib.util

import pytest

from transport_kit.runtime.errors import MissingExtra, OptionsError
from transport_kit.testing.received import decode_body
from transport_kit.transport.wire import compression
from transport_kit.transport.wire.compression import codec

BODY = b'{"type":"event","length":1000}\n' * 100


@pytest.mark.parametrize("level", [None, "lowest", "highest"])
@pytest.mark.parametrize("name", ["gzip", "isal", "br", "zstd"])
def test_every_level_of_every_codec_can_be_undone(name: str, level: str | None) -> None:
    """The accepted bounds are those of the libraries."""
    lowest, highest, _ = compression._LEVELS[name]
    made = codec(name, {None: None, "lowest": lowest, "highest": highest}[level])
    assert made.encoding is not None
    packed = made.compress(BODY)
    assert type(packed) is bytes
    assert decode_body(packed, made.encoding) == BODY
    assert len(packed) < len(BODY) // 10 or (name, level) == ("gzip", "lowest")  # level 0 only stores


@pytest.mark.parametrize("name", ["gzip", "isal", "br", "zstd"])
def test_levels_that_a_codec_does_not_have_are_refused(name: str) -> None:
    """The constructor raises, and names the option; a sender must not."""
    lowest, highest, _ = compression._LEVELS[name]
    for level in (lowest - 1, highest + 1):
        with pytest.raises(OptionsError, match=rf"compression_level .*from {lowest} to {highest} for {name}"):
            codec(name, level)


def test_no_compression_changes_nothing() -> None:
    """The body is sent unchanged, without a Content-Encoding."""
    none = codec("none")
    assert none.encoding is None
    assert none.compress(BODY) is BODY


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("isal", "isal", "speed"), ("br", "brotli", "br"), ("zstd", "zstandard", "zstd")],
)
def test_a_codec_that_is_not_installed_says_how_to_install_it(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another codec in its place would falsify measurements of traffic."""
    find = importlib.util.find_spec
    monkeypatch.setattr(compression, "find_spec", lambda wanted: None if wanted == package else find(wanted))
    with pytest.raises(MissingExtra, match=rf"pip install 'transport-kit\[{extra}\]'"):
        codec(name)
    assert codec("gzip").encoding == "gzip"
