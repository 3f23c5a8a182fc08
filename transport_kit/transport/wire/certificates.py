"""Certificates: the trusted authorities, the client certificate, and their renewal on disk.

This module owns the order of the sources: the option `ca_certs`, then `SSL_CERT_FILE` and `SSL_CERT_DIR`,
then `REQUESTS_CA_BUNDLE`, then certifi. It imports ssl only at the first connection.

Threads: a `Certificates` may be used by any number of threads. Its contexts are in a dict whose entries are
replaced in one step; two threads may read the same files at the same time, and the last result is kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from transport_kit.config.options import TransportOptions
from transport_kit.runtime.errors import OptionsError
from transport_kit.runtime.log import log
from transport_kit.transport.wire.exchange import ExchangeError, describe

if TYPE_CHECKING:
    import ssl

__all__ = ["Certificates"]

#: The variables that name authorities, by precedence; the variables of one row are used together.
_VARIABLES: Final = (("SSL_CERT_FILE", "SSL_CERT_DIR"), ("REQUESTS_CA_BUNDLE",))
#: For each file: device, inode, size and time of modification in ns; None if it is missing.
_Stamp = tuple[tuple[int, int, int, int] | None, ...]


class Certificates:
    """The TLS contexts of connections, made from the options and the environment.

    A file named by a variable that can't be read causes one warning, and the next source is used.

    Args:
        options: The options; `ca_certs`, `client_cert`, `client_key` and `trust_env` are used.
        environ: The environment variables, read at construction.
        make_context: Returns a context without trusted authorities.

    Raises:
        OptionsError: A file named by an option can't be read.
    """

    def __init__(
        self,
        options: TransportOptions,
        environ: Mapping[str, str],
        make_context: Callable[[], ssl.SSLContext],
    ) -> None:
        self._make_context = make_context
        for name in ("ca_certs", "client_cert", "client_key"):
            path = getattr(options, name)
            if path is not None and (problem := _unreadable(path)):
                raise OptionsError(name, f"can't be read: {problem}")
        # Absolute, because a daemon changes its working directory.
        self._client_cert = options.client_cert and os.path.abspath(options.client_cert)
        self._client_key = options.client_key and os.path.abspath(options.client_key)
        if options.ca_certs is not None:
            self._source, self._authorities = "ca_certs", [os.path.abspath(options.ca_certs)]
        else:
            self._source, self._authorities = _of_environment(environ if options.trust_env else {})
        # The context for the server (True), and the one for a proxy (False), without a client certificate.
        self._contexts: dict[bool, tuple[_Stamp, ssl.SSLContext]] = {}

    @property
    def bundled(self) -> bool:
        """True if certifi's authorities are trusted."""
        return not self._authorities

    def context(self, *, server: bool) -> ssl.SSLContext:
        """Return the TLS context for the server, or the one for a proxy.

        Cached until a file changes, as reading a bundle takes 10 to 30 ms. While changed files can't be
        loaded, as in the middle of a renewal, the previous context is returned.

        Raises:
            ExchangeError: The files can't be loaded, and there is no previous context.
        """
        stamp = tuple(map(_stamp, self._files(server)))
        known = self._contexts.get(server)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            context = self._read(server)
        except ExchangeError:
            if known is None:
                raise
            return known[1]
        self._contexts[server] = stamp, context
        return context

    def _files(self, server: bool) -> Iterator[str]:
        yield from self._authorities
        if server:
            yield from filter(None, (self._client_cert, self._client_key))

    def _read(self, server: bool) -> ssl.SSLContext:
        context = self._make_context()
        source = self._source
        try:
            for path in self._authorities or [_certifi()]:
                if os.path.isdir(path):
                    context.load_verify_locations(capath=path)
                else:
                    context.load_verify_locations(cafile=path)
            if server and self._client_cert is not None:
                source = "client_cert" if self._client_key is None else "client_cert, client_key"
                context.load_cert_chain(self._client_cert, self._client_key, password=_no_password)
        except (OSError, ValueError) as error:
            # The error contains no file name.
            raise ExchangeError("tls", f"{source}: {describe(error)}") from None
        return context


def _of_environment(environ: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return the name of the source, and its files and directories; none for certifi."""
    for names in _VARIABLES:
        usable: dict[str, list[str]] = {}
        for name in names:
            # OpenSSL accepts several directories in SSL_CERT_DIR, but one file in SSL_CERT_FILE.
            paths = environ.get(name, "").split(os.pathsep if name == "SSL_CERT_DIR" else "\0")
            problems = {path: _unreadable(path) for path in paths if path.strip()}
            for path, problem in problems.items():
                if problem:
                    log.warning("%s names what can't be read and is ignored: %s", name, problem)
                else:
                    usable.setdefault(name, []).append(os.path.abspath(path))
        if usable:
            return ", ".join(usable), [path for paths in usable.values() for path in paths]
    return "certifi", []


def _unreadable(path: str) -> str | None:
    """Return the reason why a file or directory can't be read, without its path; None if it can be."""
    try:
        if os.path.isdir(path):
            os.scandir(path).close()
        else:
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except (OSError, ValueError) as error:
        return describe(error)
    return None


def _stamp(path: str) -> tuple[int, int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _certifi() -> str:
    import certifi

    return certifi.where()


def _no_password() -> str:
    # Without it, OpenSSL prompts for a passphrase on the terminal, and the sender hangs.
    raise ValueError("the key is encrypted; give one without a passphrase")
