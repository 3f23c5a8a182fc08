"""Content encodings: compression of request bodies.

This module owns the choice of codec and its measured default level. A codec whose package is not installed
raises an error with the install line when it is requested, and is never replaced by another one.

Threads: the functions hold no state.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from transport_kit.runtime.errors import MissingExtra, OptionsError

__all__ = ["Codec", "codec"]

#: zlib's `wbits` for a gzip stream.
_GZIP = 31
#: Below this many bytes, compression costs more than it saves.
SMALLEST = 256


class Codec(NamedTuple):
    """A content encoding.

    Attributes:
        encoding: The value of Content-Encoding; None for identity.
        compress: Returns the encoded body.
    """

    encoding: str | None
    compress: Callable[[bytes], bytes]


def codec(name: str, level: int | None = None) -> Codec:
    """Return the codec called `name`.

    Args:
        name: `gzip`, `isal` (gzip by the package isal), `br`, `zstd` or `none`.
        level: The compression level, in the codec's own range; None is the default: gzip 3, isal 1, br 4,
            zstd 3.

    Raises:
        MissingExtra: The codec's package is not installed.
        OptionsError: The level is out of the codec's range.
    """
    if name == "none":
        return Codec(None, bytes)
    lowest, highest, default = _LEVELS[name]
    level = default if level is None else level
    if not lowest <= level <= highest:
        raise OptionsError("compression_level", f"must be from {lowest} to {highest} for {name}, not {level}")
    if name == "gzip":
        return Codec("gzip", lambda body: zlib.compress(body, level, _GZIP))
    package, extra = _PACKAGES[name]
    if find_spec(package) is None:
        raise MissingExtra("compression", package, extra)
    module: Any = import_module(package if name != "isal" else "isal.isal_zlib")
    if name == "isal":
        return Codec("gzip", lambda body: bytes(module.compress(body, level, _GZIP)))
    if name == "br":
        return Codec("br", lambda body: bytes(module.compress(body, quality=level)))
    # A compressor object is not thread-safe, and creating one is cheap compared with compressing.
    return Codec("zstd", lambda body: bytes(module.ZstdCompressor(level=level).compress(body)))


_LEVELS = {"gzip": (0, 9, 3), "isal": (0, 3, 1), "br": (0, 11, 4), "zstd": (1, 22, 3)}
_PACKAGES = {"isal": ("isal", "speed"), "br": ("brotli", "br"), "zstd": ("zstandard", "zstd")}
