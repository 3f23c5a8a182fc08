"""Options: refusals, suggestions, the source of a value, and secrets in a repr."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport_kit.config import environment
from transport_kit.config.environment import ENV_PREFIX
from transport_kit.config.options import (
    Effect,
    IntegrationOptions,
    OptionProblem,
    ReporterOptions,
    TransportOptions,
    resolve,
)
from transport_kit.runtime.errors import OptionsError

ALL = (TransportOptions, ReporterOptions, IntegrationOptions)
SECRET = "s3cret-t0ken"


def built(**values: Any) -> Any:
    """Return an instance of the class that has these options."""
    (cls,) = [cls for cls in ALL if cls.names() >= values.keys()]
    return cls(**values)


def named(cls: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    return {option.name: option for option in dataclasses.fields(cls)}


def test_the_defaults_are_the_documented_ones() -> None:
    """docs/reference/options.md lists them."""
    options = TransportOptions()
    assert options.max_queue_items == 10_000
    assert options.max_queue_bytes == 64 * 1024 * 1024
    assert options.max_senders == 8
    assert options.shutdown_timeout == 2.0
    assert options.retry_window == 3600.0
    errors = set(range(500, 600)) - {501, 505, 510}
    assert options.retry_statuses == (407, 408, 421, 425, *sorted(errors))
    assert options.compression == "gzip"
    assert ReporterOptions().environment == "production"
    assert ReporterOptions().send_default_pii is False
    assert IntegrationOptions().path == "/transport"
    assert IntegrationOptions().flush_token is None


def test_no_name_belongs_to_two_classes() -> None:
    """Users write one flat set of names, in which a shared name would be ambiguous."""
    assert sum(len(cls.names()) for cls in ALL) == len(frozenset().union(*(cls.names() for cls in ALL)))


@pytest.mark.parametrize("cls", ALL)
def test_every_option_is_described_with_its_name(cls: type[Any]) -> None:
    """Every option needs a line in the docstring."""
    assert cls.__doc__ is not None
    for name in cls.names():
        assert f"\n    {name}: " in inspect.cleandoc(cls.__doc__)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("max_queue_items", 0, "must be from 1 to 10000000, not 0"),
        ("max_queue_items", True, "must be a whole number, not bool"),
        ("max_queue_items", 5.0, "must be a whole number, not float"),
        ("max_queue_items", "5", "must be a whole number, not str"),
        ("max_queue_items", None, "must be a whole number, not NoneType"),
        pytest.param("max_queue_items", 10**5000, "not a number of more than 20 digits", id="huge"),
        ("max_senders", 65, "must be from 1 to 64, not 65"),
        ("shutdown_timeout", -0.1, "must be from 0 to 3600 seconds, not -0.1"),
        ("shutdown_timeout", float("nan"), "must be from 0 to 3600 seconds, not nan"),
        ("shutdown_timeout", float("inf"), "must be from 0 to 3600 seconds, not inf"),
        ("shutdown_timeout", 10**400, "not a number of more than 20 digits"),
        ("shutdown_timeout", "2", "must be a number of seconds, not str"),
        ("shutdown_timeout", False, "must be a number of seconds, not bool"),
        ("connect_timeout", 0, "must be from 0.001 to 300 seconds, not 0"),
        ("keep_alive", 1, "must be True or False"),
        ("keep_alive", "yes", "must be True or False"),
        ("compression", "deflate", "must be one of gzip, isal, br, zstd, none"),
        ("compression", ["gzip"], "must be one of gzip, isal, br, zstd, none"),
        ("compression_level", "9", "must be a whole number, not str"),
        ("compression_level", 23, "must be from 0 to 22, not 23"),
        ("retry_statuses", "503", "must be a list of HTTP statuses, not str"),
        ("retry_statuses", 503, "must be a list of HTTP statuses, not int"),
        ("retry_statuses", ["503"], "must hold whole numbers only"),
        ("retry_statuses", [True], "must hold whole numbers only"),
        (
            "retry_statuses",
            [429],
            "may hold 407, 408, 421, 425 and 500 to 599, not 429; a 429 is never retried",
        ),
        ("ca_certs", "", "must not be empty; leave it out instead"),
        ("ca_certs", 7, "must be text, not int"),
        ("ca_certs", "a\0b", "must not contain control characters"),
        ("no_proxy", "a" * 5000, "must have at most 4096 characters, not 5000"),
        ("proxy", "http://proxy\n", "must not contain control characters"),
        ("proxy_headers", "a=b", "must be a mapping of header names to values, not str"),
        ("proxy_headers", {"a": 1}, "names and values must be text"),
        ("proxy_headers", ("ab",), "names and values must be text"),
        ("proxy_headers", {"": "x"}, "names must be HTTP header names"),
        ("proxy_headers", {"a:b": "x"}, "names must be HTTP header names"),
        ("proxy_headers", {"a": "x\r\nb: c"}, "values must be Latin-1 text without line breaks"),
        ("proxy_headers", {"a": "\u20ac"}, "values must be Latin-1 text without line breaks"),
        ("proxy_headers", {"A": "x", "a": "y"}, "must not give a header twice"),
        ("release", "r" * 201, "must have at most 200 characters, not 201"),
        ("release", "1.0\n", "must not contain control characters"),
        ("environment", None, "must be text, not NoneType"),
        ("in_app_include", "shop", "must be a list of texts, not str"),
        ("in_app_include", 7, "must be a list of texts, not int"),
        ("in_app_include", ["shop", ""], "must hold non-empty texts only"),
        ("in_app_include", b"shop", "must hold non-empty texts only"),
        ("before_send", "function", "must be callable, not str"),
        ("path", "transport", "must start with a slash and not end with one"),
        ("path", "/", "must start with a slash and not end with one"),
        ("path", "//x", "must be letters, digits and -._~ between slashes"),
        ("path", "/a?b", "must be letters, digits and -._~ between slashes"),
        ("path", "/<x>", "must be letters, digits and -._~ between slashes"),
        ("path", "/verkäufe", "must be letters, digits and -._~ between slashes"),
        ("flush_token", "", "must not be empty; leave it out instead"),
        ("flush_token", "t\n", "must not contain control characters"),
        ("health_details", "all", "must be one of token, always"),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_be_right(name: str, value: object, problem: str) -> None:
    """A wrong value must fail at start, not in the first outage."""
    with pytest.raises(OptionsError) as caught:
        built(**{name: value})
    assert caught.value.field == name
    assert problem in caught.value.problem
    assert caught.value.source == "arguments"


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("shutdown_timeout", 0, 0.0),
        ("retry_statuses", [504, 502, 504], (502, 504)),
        ("retry_statuses", (), ()),
        ("retry_statuses", {425, 599, 407, 408, 421}, (407, 408, 421, 425, 599)),
        ("ca_certs", Path("ca.pem"), "ca.pem"),
        ("compression_level", 0, 0),
        ("proxy_headers", {"B": "2", "A": "1"}, (("A", "1"), ("B", "2"))),
        ("proxy_headers", (("B", "2"), ("A", "1")), (("A", "1"), ("B", "2"))),
        ("proxy_headers", {}, ()),
        ("in_app_include", ["shop", "lib"], ("shop", "lib")),
        ("path", None, None),
        ("before_send", None, None),
        ("before_send", max, max),
    ],
)
def test_a_right_value_is_stored_in_one_form(name: str, value: object, stored: object) -> None:
    """Readers of an option handle one type only, and options stay hashable."""
    options = built(**{name: value})
    assert getattr(options, name) == stored
    assert type(getattr(options, name)) is type(stored)
    assert hash(options) == hash(dataclasses.replace(options))
    assert dataclasses.replace(options) == options


def test_options_that_only_make_sense_together_are_checked_together() -> None:
    """A ceiling below the first delay and a key without a certificate are mistakes."""
    with pytest.raises(OptionsError, match="must not be smaller than backoff_base") as backoff:
        TransportOptions(backoff_base=2, backoff_max=1)
    with pytest.raises(OptionsError, match="needs client_cert too") as key:
        TransportOptions(client_key="key.pem")
    assert backoff.value.field == "backoff_max"
    assert key.value.field == "client_key"
    assert TransportOptions(client_key="key.pem", client_cert="cert.pem").client_key == "key.pem"


def test_options_never_change() -> None:
    """Transports and threads share one value."""
    options = TransportOptions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.max_senders = 1  # type: ignore[misc]
    assert copy.copy(options) is options
    assert copy.deepcopy([options])[0] is options


def test_the_callers_own_mapping_is_neither_kept_nor_changed() -> None:
    """Tests and plugins edit settings later."""
    headers = {"B": "2", "A": "1"}
    values = {"PROXY_HEADERS": headers, "MAX_SENDERS": 2}
    options = TransportOptions.from_mapping(values, source="settings")
    headers["C"] = "3"
    assert options.proxy_headers == (("A", "1"), ("B", "2"))
    assert list(values) == ["PROXY_HEADERS", "MAX_SENDERS"]


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("max_queue_item", "max_queue_items"),
        ("SHUTDOWN_TIMOUT", "shutdown_timeout"),
        ("retrystatuses", "retry_statuses"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(name: str, suggested: str) -> None:
    """A typo must not leave a default in force silently."""
    with pytest.raises(OptionsError) as caught:
        TransportOptions.from_mapping({name: 1}, source="settings.TRANSPORT_KIT")
    assert caught.value.field == name
    assert caught.value.problem == f"unknown option; did you mean {suggested}?"
    assert str(caught.value).startswith(f"{name} (settings.TRANSPORT_KIT): ")


@pytest.mark.parametrize("name", ["zzz", "", 7, None, ("max_senders",)])
def test_a_name_near_to_none_points_to_the_list(name: Any) -> None:
    """A far-fetched suggestion would mislead; a name that is no text is unknown too."""
    with pytest.raises(OptionsError, match=r"unknown option") as caught:
        TransportOptions.from_mapping({name: 1}, source="settings")
    assert caught.value.field == str(name)


def test_a_name_given_in_both_cases_is_refused() -> None:
    """Otherwise the order would decide."""
    with pytest.raises(OptionsError, match="given twice"):
        TransportOptions.from_mapping({"max_senders": 1, "MAX_SENDERS": 2}, source="settings")


def test_from_mapping_names_the_source_and_ignores_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mapping is the only source of values."""
    monkeypatch.setenv("TRANSPORT_KIT_MAX_SENDERS", "3")
    assert TransportOptions.from_mapping({}, source="settings").max_senders == 8
    with pytest.raises(OptionsError) as caught:
        TransportOptions.from_mapping({"MAX_SENDERS": "3"}, source="settings.TRANSPORT_KIT")
    assert str(caught.value) == "max_senders (settings.TRANSPORT_KIT): must be a whole number, not str"


ENVIRONMENT = {
    "MAX_SENDERS": ("3", 3),
    "SHUTDOWN_TIMEOUT": ("0.5", 0.5),
    "KEEP_ALIVE": (" Off ", False),
    "HANDLE_SIGTERM": ("1", True),
    "COMPRESSION": ("br", "br"),
    "COMPRESSION_LEVEL": ("5", 5),
    "RETRY_STATUSES": ("503, 502,", (502, 503)),
    "PROXY": ("socks5h://proxy:1080", "socks5h://proxy:1080"),
    "PROXY_HEADERS": (
        "Proxy-Authorization=Basic dXNlcjpwYXNz==, X-A=",
        (("Proxy-Authorization", "Basic dXNlcjpwYXNz=="), ("X-A", "")),
    ),
    "RELEASE": ("shop@1.2.0", "shop@1.2.0"),
    "IN_APP_INCLUDE": ("shop, lib", ("shop", "lib")),
    "PATH": ("/ops", "/ops"),
    "STRICT": ("true", True),
}


@pytest.mark.parametrize("name", sorted(ENVIRONMENT))
def test_the_environment_fills_what_was_not_given(name: str) -> None:
    """Names are the same in every source, and every type can be parsed from text."""
    text, expected = ENVIRONMENT[name]
    options = resolve({}, ALL, environ={ENV_PREFIX + name: text})
    values = {field: getattr(each, field) for each in options for field in each.names()}
    assert values[name.lower()] == expected


def test_arguments_win_over_the_environment_even_if_that_is_unusable() -> None:
    """The variable of an option that was given is not even parsed."""
    environ = {"TRANSPORT_KIT_MAX_SENDERS": "many", "TRANSPORT_KIT_PROXY": "http://other"}
    (options,) = resolve({"MAX_SENDERS": 2, "proxy": None}, (TransportOptions,), environ=environ)
    assert options.max_senders == 2
    assert options.proxy is None


def test_the_process_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve-factor apps are configured by the environment alone."""
    monkeypatch.setenv("TRANSPORT_KIT_MAX_SENDERS", "3")
    monkeypatch.setenv("TRANSPORT_KIT_DSN", "https://key@sentry.example/42")
    monkeypatch.setenv("UNRELATED_MAX_SENDERS", "5")
    (options,) = resolve({}, (TransportOptions,))
    assert options.max_senders == 3


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("MAX_SENDERS", "three", "must be a whole number"),
        ("MAX_SENDERS", "0", "must be from 1 to 64, not 0"),
        ("MAX_SENDERS", "9" * 5000, "must be a whole number"),
        ("SHUTDOWN_TIMEOUT", "soon", "must be a number of seconds"),
        ("SHUTDOWN_TIMEOUT", "nan", "must be from 0 to 3600 seconds, not nan"),
        ("KEEP_ALIVE", "maybe", "must be one of 1, true, yes, on, 0, false, no, off"),
        ("RETRY_STATUSES", "5xx", "must be statuses separated by commas"),
        ("RETRY_STATUSES", "429", "may hold 407, 408, 421, 425 and 500 to 599, not 429"),
        ("PROXY_HEADERS", "Proxy-Authorization", "must be name=value pairs separated by commas"),
        ("PROXY", "", "must not be empty; leave it out instead"),
        ("BEFORE_SEND", "module.function", "can't be set from the environment"),
    ],
)
def test_a_wrong_variable_is_refused_and_named(name: str, text: str, problem: str) -> None:
    """The error must show which of the three sources to correct."""
    with pytest.raises(OptionsError) as caught:
        resolve({}, ALL, source="settings", environ={ENV_PREFIX + name: text})
    assert caught.value.field == name.lower()
    assert problem in caught.value.problem
    assert caught.value.source == f"environment {ENV_PREFIX}{name}"


#: Set by Kubernetes in every pod beside a Service named `transport-kit`, and by Docker for such a link.
LINKS = {
    "TRANSPORT_KIT_SERVICE_HOST": "10.0.0.7",
    "TRANSPORT_KIT_SERVICE_PORT": "80",
    "TRANSPORT_KIT_SERVICE_PORT_HTTP": "80",
    "TRANSPORT_KIT_PORT": "tcp://10.0.0.7:80",
    "TRANSPORT_KIT_PORT_80_TCP": "tcp://10.0.0.7:80",
    "TRANSPORT_KIT_PORT_80_TCP_PROTO": "tcp",
    "TRANSPORT_KIT_NAME": "/shop/transport_kit",
    "TRANSPORT_KIT_ENV_PROXY": "x",
}


@pytest.fixture(name="unwarned", autouse=True)
def _unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_reported_variables", set())


@pytest.mark.parametrize("problems", [None, []], ids=["raising", "collecting"])
def test_variables_that_are_no_options_are_one_warning(
    problems: list[OptionProblem] | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The name of a neighbouring service must not end an app."""
    for _ in range(2):
        resolved = resolve({}, ALL, environ=LINKS, problems=problems)
    assert resolved == (TransportOptions(), ReporterOptions(), IntegrationOptions())
    assert not problems
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert all(name in record.getMessage() for name in LINKS)
    assert "tcp://" not in record.getMessage()


def test_a_misspelt_variable_is_warned_of_with_the_nearest_option(caplog: pytest.LogCaptureFixture) -> None:
    """The warning suggests an option for a variable that resembles one."""
    resolve({}, ALL, environ={"TRANSPORT_KIT_MAX_SENDER": "3", "TRANSPORT_KIT_DNS": "https://key@host/1"})
    assert "TRANSPORT_KIT_MAX_SENDER (did you mean TRANSPORT_KIT_MAX_SENDERS?)" in caplog.text
    assert "TRANSPORT_KIT_DNS (did you mean TRANSPORT_KIT_DSN?)" in caplog.text
    assert "key@host" not in caplog.text


# -- substitutes -------------------------------------------------------------------------------------------

#: A value that no option of its class accepts.
UNUSABLE = object()
#: The substitutes of options whose default could be laxer than the intended value, and the effect.
SAFE: dict[str, tuple[object, Effect]] = {
    "ca_certs": (None, Effect.STOPS),
    "client_cert": (None, Effect.STOPS),
    "client_key": (None, Effect.STOPS),
    "proxy": (None, Effect.STOPS),
    "proxy_headers": ((), Effect.STOPS),
    "no_proxy": (None, Effect.STOPS),
    "trust_env": (False, Effect.STOPS),
    "queue": ("memory", Effect.FAILS),
    "spool_durability": ("host", Effect.WARNS),
    "send_client_reports": (False, Effect.WARNS),
    "send_default_pii": (False, Effect.WARNS),
    "sample_rate": (0.0, Effect.WARNS),
    "traces_sample_rate": (None, Effect.WARNS),
    "max_breadcrumbs": (0, Effect.WARNS),
    "max_request_body_size": ("never", Effect.WARNS),
    "trace_propagation_targets": ((), Effect.WARNS),
    "strict_trace_continuation": (True, Effect.WARNS),
    "auto_session_tracking": (False, Effect.WARNS),
    "detect_release": (False, Effect.WARNS),
    "capture_errors": (False, Effect.WARNS),
    "flush_token": (None, Effect.WARNS),
}
EVERY = [option for cls in ALL for option in dataclasses.fields(cls)]


@pytest.mark.parametrize("option", EVERY, ids=lambda option: option.name)
def test_what_stands_in_for_an_option_is_never_laxer_than_what_was_meant(
    option: dataclasses.Field[Any],
) -> None:
    """A value that can't be used must cost neither deliveries nor a safeguard."""
    problems: list[OptionProblem] = []
    resolved = resolve({option.name: UNUSABLE}, ALL, environ={}, problems=problems, tolerant=True)
    (problem,) = problems
    (value,) = (getattr(options, option.name) for options in resolved if option.name in options.names())
    if option.name in ("before_send", "traces_sampler"):
        assert not value({}, {}) if option.name == "before_send" else value({}) == 0.0
        assert problem.effect is Effect.WARNS
    else:
        assert (value, problem.effect) == SAFE.get(option.name, (option.default, Effect.WARNS))
    assert problem.name == option.name
    assert "object at" not in str(problem)
    assert "\n" not in str(problem)


@pytest.mark.parametrize(
    ("values", "environ", "names"),
    [
        ({"max_senders": "many", "compression": 7, "release": "1"}, {}, ["max_senders", "compression"]),
        ({"release": "1", "of_a_newer_version": 1}, {}, ["of_a_newer_version"]),
        ({"release": "1", "max_senders": 2, "MAX_SENDERS": 3}, {}, ["max_senders"]),
        ({"release": "1"}, {"TRANSPORT_KIT_MAX_SENDERS": "many"}, ["max_senders"]),
        ({"release": "1"}, {"TRANSPORT_KIT_BACKOFF_BASE": "100"}, ["backoff_base"]),
        ({"release": "1", "backoff_max": 0.1}, {}, ["backoff_max"]),
        ({"release": "1"}, {"TRANSPORT_KIT_CLIENT_KEY": "/k"}, ["client_key"]),
        ({"release": "1", "path": "no slash"}, {"TRANSPORT_KIT_PATH": "/x"}, ["path"]),
        ({"release": "1", "queue": "redis://x"}, {}, ["queue"]),
    ],
)
def test_the_options_beside_one_that_can_not_be_used_stay(
    values: dict[str, object], environ: dict[str, str], names: list[str]
) -> None:
    """Also if two options exclude each other, or a name is unknown."""
    problems: list[OptionProblem] = []
    transport, reporter, _ = resolve(values, ALL, environ=environ, problems=problems, tolerant=True)
    assert sorted(problem.name for problem in problems) == sorted(names)
    assert reporter.release == "1"
    assert transport.max_senders == 8
    assert transport.backoff_base <= transport.backoff_max


@pytest.mark.parametrize(
    ("name", "effect"),
    [("BEFORE_SENDS", "before_send"), ("before_sned", "before_send"), ("CA_CERT", "ca_certs")],
)
def test_a_misspelt_safeguard_counts_as_one_that_can_not_be_used(name: str, effect: str) -> None:
    """With `before_sned` events must not be sent unfiltered."""
    problems: list[OptionProblem] = []
    resolved = resolve({name: print}, ALL, environ={}, problems=problems, tolerant=True)
    (problem,) = problems
    assert problem.name == name
    assert f"did you mean {effect}?" in problem.problem
    assert problem.effect is (Effect.STOPS if effect == "ca_certs" else Effect.WARNS)
    if effect == "before_send":
        assert resolved[1].before_send is not None
        assert resolved[1].before_send({}, {}) is None


def test_arguments_are_raised_while_the_environment_is_collected() -> None:
    """An author can correct a call at once; others often write a container's environment."""
    problems: list[OptionProblem] = []
    environ = {"TRANSPORT_KIT_MAX_SENDERS": "many"}
    with pytest.raises(OptionsError, match="max_senders"):
        resolve({"max_senders": "many"}, ALL, environ=environ, problems=problems)
    resolve({}, ALL, environ=environ, problems=problems)
    assert [str(problem) for problem in problems] == [
        "max_senders (environment TRANSPORT_KIT_MAX_SENDERS): must be a whole number; its default, 8, is used"
    ]


def test_a_variable_of_another_option_class_is_left_to_it() -> None:
    """A transport may be built without an integration in the same environment."""
    environ = {"TRANSPORT_KIT_PATH": "no slash", "TRANSPORT_KIT_RELEASE": "1.0"}
    (options,) = resolve({}, (TransportOptions,), environ=environ)
    assert options == TransportOptions()


def test_one_mapping_is_shared_out_to_several_classes() -> None:
    """Users write one flat mapping and need not know which class owns a name."""
    values = {"MAX_SENDERS": 2, "RELEASE": "1.0", "PATH": None}
    transport, reporter, integration = resolve(values, ALL, source="settings", environ={})
    assert transport == TransportOptions(max_senders=2)
    assert reporter == ReporterOptions(release="1.0")
    assert integration == IntegrationOptions(path=None)


def test_a_name_of_a_class_that_was_not_asked_for_is_unknown() -> None:
    """`make_transport(path=...)` would have no effect, so it is refused."""
    with pytest.raises(OptionsError, match="unknown option"):
        resolve({"path": "/x"}, (TransportOptions,), environ={})


def test_an_error_of_a_default_is_told_with_the_given_source() -> None:
    """`backoff_max` was not given, but the mapping made it wrong."""
    with pytest.raises(OptionsError) as caught:
        TransportOptions.from_mapping({"BACKOFF_BASE": 100}, source="settings.TRANSPORT_KIT")
    assert caught.value.field == "backoff_max"
    assert caught.value.source == "settings.TRANSPORT_KIT"


SECRETS = [
    TransportOptions(proxy=f"http://user:{SECRET}@proxy:3128"),
    TransportOptions.from_mapping({"proxy_headers": {"Proxy-Authorization": SECRET}}, source="settings"),
    IntegrationOptions(flush_token=SECRET),
]


@pytest.mark.parametrize("options", SECRETS)
def test_a_repr_shows_no_secret(options: Any) -> None:
    """Options appear in logs and in the variables of captured stack frames."""
    assert SECRET not in repr(options)
    assert SECRET not in f"{options}"
    assert type(options).__name__ in repr(options)


@pytest.mark.parametrize("options", SECRETS)
def test_options_with_a_secret_are_not_pickled(options: Any) -> None:
    """A pickle goes to caches, queues and other processes, and would contain the secret."""
    with pytest.raises(TypeError, match="is not pickled while") as caught:
        pickle.dumps(options)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("cls", ALL)
def test_options_without_a_secret_are_pickled(cls: type[Any], protocol: int) -> None:
    """A spawned process gets them as arguments."""
    assert pickle.loads(pickle.dumps(cls(), protocol=protocol)) == cls()


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.lists(st.one_of(st.integers(), st.text()), max_size=3),
    st.tuples(st.text(), st.text()),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3),
    st.just(object()),
)


@given(st.sampled_from([(cls, name) for cls in ALL for name in sorted(cls.names())]), anything)
def test_any_value_is_stored_or_refused_by_name(option: tuple[type[Any], str], value: object) -> None:
    """No value may cause another error, or options that can't be hashed."""
    cls, name = option
    refused: OptionsError | None = None
    try:
        options = cls(**{name: value})
    except OptionsError as error:
        refused = error
    if refused is None:
        assert cls(**{name: getattr(options, name)}) == options
        assert isinstance(hash(options), int)
    else:
        assert refused.field in cls.names()
        if not named(cls)[name].repr and isinstance(value, str) and len(value) > 8:
            assert value not in str(refused)


@given(st.sampled_from(sorted(frozenset().union(*(cls.names() for cls in ALL)))), st.text(max_size=30))
def test_any_variable_is_read_or_refused_by_name(name: str, text: str) -> None:
    """A variable may contain any text."""
    variable = ENV_PREFIX + name.upper()
    refused: OptionsError | None = None
    try:
        built_options = resolve({}, ALL, environ={variable: text})
    except OptionsError as error:
        refused = error
    if refused is None:
        assert len(built_options) == 3
    else:
        assert refused.source in (f"environment {variable}", "arguments")


def test_a_mistyped_dsn_is_recognised_where_one_may_be_given() -> None:
    """The most important name is not a field of any class."""
    classes = (TransportOptions, ReporterOptions, IntegrationOptions)
    with pytest.raises(OptionsError, match="did you mean dsn"):
        resolve({"dns": "x"}, classes, environ={})
    with pytest.raises(OptionsError) as caught:
        resolve({"dns": "x"}, (TransportOptions,), environ={})
    assert "dsn" not in caught.value.problem
