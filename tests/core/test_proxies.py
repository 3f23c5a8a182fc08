"""The choice of the proxy: options, then environment, then no_proxy."""

from __future__ import annotations

import pytest

from transport_kit.runtime.errors import OptionsError
from transport_kit.transport.wire.proxies import Proxy, bypasses, choose_proxy, parse_proxy


@pytest.mark.parametrize(
    ("host", "port", "no_proxy", "expected"),
    [
        ("example.com", 443, "", False),
        ("example.com", 443, " , ,", False),
        ("example.com", 443, "*", True),
        ("example.com", 443, "other.test, *", True),
        ("example.com", 443, "example.com", True),
        ("a.example.com", 443, "example.com", True),
        ("a.b.example.com", 443, "example.com", True),
        ("notexample.com", 443, "example.com", False),
        ("example.com.evil.test", 443, "example.com", False),
        ("example.com", 443, ".example.com", True),
        ("a.example.com", 443, ".example.com", True),
        ("notexample.com", 443, ".example.com", False),
        ("a.example.com", 443, "*.example.com", True),
        ("example.com", 443, ".", False),
        ("EXAMPLE.com", 443, "Example.COM", True),
        ("example.com.", 443, "example.com", True),
        ("example.com", 443, "example.com.", True),
        ("example.com", 443, "first.test , example.com ", True),
        ("example.com", 443, "exam ple.com", True),
        ("example.com", 8443, "example.com:8443", True),
        ("a.example.com", 8443, "example.com:8443", True),
        ("example.com", 443, "example.com:8443", False),
        ("example.com", 443, "example.com:", True),
        ("example.com", 443, "example.com:http", False),
        ("example.com", 443, "example.com:443443", False),
        ("localhost", 80, "localhost", True),
        ("127.0.0.1", 80, "localhost", False),
        ("127.0.0.1", 80, "127.0.0.1", True),
        ("127.0.0.1", 80, "127.0.0.1:80", True),
        ("127.0.0.1", 81, "127.0.0.1:80", False),
        ("10.1.2.3", 80, "10.0.0.0/8", True),
        ("10.1.2.3", 80, "10.1.2.99/24", True),
        ("11.1.2.3", 80, "10.0.0.0/8", False),
        ("10.1.2.3", 80, "10.0.0.0/99", False),
        ("10.1.2.3", 80, "2.3", False),
        ("10.example.com", 80, "10.0.0.0/8", False),
        ("::1", 80, "::1", True),
        ("::1", 80, "0:0:0:0:0:0:0:1", True),
        ("::1", 80, "[::1]", True),
        ("::1", 80, "[::1]:80", True),
        ("::1", 81, "[::1]:80", False),
        ("::1", 80, "[::1", False),
        ("::1", 80, "[::1]x", False),
        ("fd00::5", 80, "fd00::/8", True),
        ("fe80::5", 80, "fd00::/8", False),
        ("fd00::5", 80, "10.0.0.0/8", False),
        ("10.1.2.3", 80, "fd00::/8", False),
    ],
)
def test_no_proxy_is_read_as_requests_reads_it(host: str, port: int, no_proxy: str, expected: bool) -> None:
    """A wrong match bypasses a proxy, a missed one makes the server unreachable."""
    assert bypasses(host, port, no_proxy) is expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://proxy.test:3128", Proxy("http", "proxy.test", 3128)),
        ("http://proxy.test", Proxy("http", "proxy.test", 80)),
        ("https://proxy.test/", Proxy("https", "proxy.test", 443)),
        ("socks5://proxy.test", Proxy("socks5", "proxy.test", 1080)),
        ("SOCKS5H://Proxy.Test:9", Proxy("socks5h", "proxy.test", 9)),
        ("proxy.test:3128", Proxy("http", "proxy.test", 3128)),
        (" http://[::1]:3128 ", Proxy("http", "::1", 3128)),
        ("http://us%40er:p%3Aw@proxy.test", Proxy("http", "proxy.test", 80, "us@er", "p:w")),
        ("http://user@proxy.test", Proxy("http", "proxy.test", 80, "user", None)),
    ],
)
def test_a_proxy_url_is_read(url: str, expected: Proxy) -> None:
    """The forms that are common in environments."""
    assert parse_proxy(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "ftp://s3cret@proxy.test",
        "socks4://s3cret@proxy.test",
        "http://s3cret@",
        "http://s3cret@:3128",
        "http://s3cret@proxy.test:0",
        "http://s3cret@proxy.test:99999",
        "http://s3cret@proxy.test:x",
        "http://s3cret@[::1",
        "http://s3cret@proxy test",
        "http://s3cret@proxy.test\r\nHost: x",
        "s3cret\0",
    ],
)
def test_a_bad_proxy_url_is_named_without_its_password(url: str) -> None:
    """The message goes to a log, and the URL may contain credentials."""
    with pytest.raises(OptionsError) as caught:
        choose("http", proxy=url)
    assert caught.value.field == "proxy"
    assert "s3cret" not in str(caught.value)


def test_credentials_stay_out_of_the_repr() -> None:
    """A proxy's password gives access to the proxy."""
    proxy = parse_proxy("http://user:s3cret@proxy.test")
    assert "s3cret" not in repr(proxy)
    assert "user" not in repr(proxy)


def test_credentials_become_basic_authorization() -> None:
    """RFC 7617, in UTF-8."""
    assert parse_proxy("http://us%C3%A9r:p@h").authorization == "Basic dXPDqXI6cA=="
    assert parse_proxy("http://user@h").authorization == "Basic dXNlcjo="
    assert parse_proxy("http://h").authorization is None


def choose(
    scheme: str,
    *,
    proxy: str | None = None,
    no_proxy: str | None = None,
    trust_env: bool = True,
    **environ: str,
) -> str | None:
    chosen = choose_proxy(
        scheme,
        "sentry.test",
        443,
        proxy=proxy,
        no_proxy=no_proxy,
        trust_env=trust_env,
        environ=environ,
    )
    return None if chosen is None else chosen.host


def test_without_a_word_there_is_no_proxy() -> None:
    """The usual case: no option and no variable."""
    assert choose("https") is None


def test_each_scheme_has_its_variable_and_all_proxy_is_the_last_resort() -> None:
    """As curl, requests and urllib read them."""
    assert choose("http", http_proxy="http://plain", https_proxy="http://tls") == "plain"
    assert choose("https", http_proxy="http://plain", https_proxy="http://tls") == "tls"
    assert choose("https", HTTPS_PROXY="http://upper") == "upper"
    assert choose("https", HTTPS_PROXY="http://upper", https_proxy="http://lower") == "lower"
    assert choose("https", http_proxy="http://plain", ALL_PROXY="http://all") == "all"
    assert choose("https", https_proxy="http://tls", all_proxy="http://all") == "tls"


def test_an_empty_lower_case_variable_hides_the_upper_case_one() -> None:
    """`https_proxy= command` is a common way to disable a proxy."""
    assert choose("https", HTTPS_PROXY="http://upper", https_proxy="") is None
    assert choose("https", HTTPS_PROXY="http://upper", https_proxy=" ", all_proxy="http://all") == "all"


def test_a_cgi_request_can_not_set_our_proxy() -> None:
    """CVE-2016-5385: a request header `Proxy:` becomes HTTP_PROXY."""
    assert choose("http", HTTP_PROXY="http://evil", REQUEST_METHOD="GET") is None
    assert choose("http", HTTP_PROXY="http://evil", REQUEST_METHOD="GET", all_proxy="http://all") == "all"
    assert choose("http", http_proxy="http://good", REQUEST_METHOD="GET") == "good"
    assert choose("https", HTTPS_PROXY="http://good", REQUEST_METHOD="GET") == "good"


def test_no_proxy_of_the_environment_belongs_to_proxies_of_the_environment() -> None:
    """With the option `proxy` the environment is not read; the option `no_proxy` replaces NO_PROXY."""
    assert choose("https", https_proxy="http://tls", NO_PROXY="sentry.test") is None
    assert choose("https", https_proxy="http://tls", NO_PROXY="sentry.test", no_proxy="other") == "tls"
    assert choose("https", proxy="http://given", NO_PROXY="sentry.test") == "given"
    assert choose("https", proxy="http://given", no_proxy="sentry.test") is None
    assert choose("https", proxy="http://given", https_proxy="http://tls") == "given"


def test_an_environment_that_is_not_trusted_is_not_read() -> None:
    """`trust_env=False` is for hosts where other people set variables."""
    assert choose("https", https_proxy="http://tls", trust_env=False) is None
    assert choose("https", https_proxy="nonsense://", trust_env=False) is None


def test_a_bad_variable_is_named() -> None:
    """The message must name the source."""
    with pytest.raises(OptionsError, match=r"proxy \(environment HTTPS_PROXY\): must begin with"):
        choose("https", HTTPS_PROXY="socks://proxy.test")
