"""Certificates: which authorities are trusted, what the client shows, and when either is read anew.

Owns the order of the sources: the option `ca_certs`, then `SSL_CERT_FILE` and `SSL_CERT_DIR`, then
`REQUESTS_CA_BUNDLE`, then certifi. Imports ssl at the first connection only.

Threads: a `Certificates` may be used by any number of them. Its contexts are in a dict that changes in single
steps; two threads may read the same files at the same time, and one result is kept.
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

#: The variables that name authorities, in the order in which they are looked at, those of one row together.
_VARIABLES: Final = (("SSL_CERT_FILE", "SSL_CERT_DIR"), ("REQUESTS_CA_BUNDLE",))
#: Of a file: device, inode, size and time of change in ns; None where it is missing.
_Stamp = tuple[tuple[int, int, int, int] | None, ...]


class Certificates:
    """Makes the TLS settings of connections from the options and the environment.

    Args:
        options: `ca_certs`, `client_cert`, `client_key` and `trust_env`.
        environ: The variables; read once.
        make_context: Makes settings that trust nobody yet.

    Raises:
        OptionsError: A file that an option names can't be read. What a variable names and can't be read is
            one warning, and the next source is used.
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
        # Absolute: a daemon changes its directory.
        self._client_cert = options.client_cert and os.path.abspath(options.client_cert)
        self._client_key = options.client_key and os.path.abspath(options.client_key)
        if options.ca_certs is not None:
            self._source, self._authorities = "ca_certs", [os.path.abspath(options.ca_certs)]
        else:
            self._source, self._authorities = _of_environment(environ if options.trust_env else {})
        # By whether they are for the server, or for a proxy, which never gets the client certificate.
        self._contexts: dict[bool, tuple[_Stamp, ssl.SSLContext]] = {}

    @property
    def bundled(self) -> bool:
        """True if certifi's authorities are trusted."""
        return not self._authorities

    def context(self, *, server: bool) -> ssl.SSLContext:
        """Return the TLS settings for the server, or for a proxy.

        Made anew when a file has changed, as reading a bundle takes 10 to 30 ms. While files that have
        changed can't be read, as in the middle of a renewal, the settings made last are returned.

        Raises:
            ExchangeError: The files can't be used, and never could.
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
            # Neither OpenSSL nor the system's error names the file.
            raise ExchangeError("tls", f"{source}: {describe(error)}") from None
        return context


def _of_environment(environ: Mapping[str, str]) -> tuple[str, list[str]]:
    """The name of the source, and its files and directories; empty for certifi."""
    for names in _VARIABLES:
        usable: dict[str, list[str]] = {}
        for name in names:
            # OpenSSL takes several directories in one variable, but one file.
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
    """Why a file or directory can't be read; None if it can. The text holds no path."""
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
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _certifi() -> str:
    import certifi

    return certifi.where()


def _no_password() -> str:
    # Without this, OpenSSL asks on the terminal, and the sender hangs.
    raise ValueError("the key is encrypted; give one without a passphrase")
