"""What scrubbing must leave alone: the messages of real packages, and values that only look like secrets."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from transport_kit.reporting.values.bounded import Limits, Room, bounded
from transport_kit.reporting.values.scrub import scrub_text
from transport_kit.reporting.values.secret_names import is_private, is_sensitive

_PACKAGES = (
    "asyncio",
    "celery",
    "gunicorn",
    "http",
    "kombu",
    "redis",
    "rq",
    "starlette",
    "urllib3",
    "werkzeug",
)
_LOG_CALLS = frozenset({"debug", "info", "warning", "error", "exception", "critical", "log", "warn"})


def messages(package: str) -> Iterator[str]:
    """Yield the messages that a package logs or raises, with a word for each value in them."""
    for file in Path(importlib.import_module(package).__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                arguments = node.exc.args[:1]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                arguments = node.args[:2] if node.func.attr in _LOG_CALLS else []
            else:
                continue
            for argument in arguments:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value
                elif isinstance(argument, ast.JoinedStr):
                    yield "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "value17"
                        for part in argument.values
                    )


def test_nearly_all_messages_of_real_packages_are_left_alone() -> None:
    """A message with a hole in it does not explain the error."""
    texts = {text for package in _PACKAGES for text in messages(package)}
    changed = [text for text in texts if scrub_text(text) != text]
    assert len(texts) > 1000
    assert len(changed) <= len(texts) / 500, changed


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM accounts WHERE key = ?",
        "UPDATE t SET token=%s, name=%s WHERE key = %(key)s",
        "WHERE token = $1 AND secret = :secret",
        "password=None",
        "auth: null, token=true",
        "token=''",
        "12 pass, 3 fail",
        "pass=1234 fail=3",
        "compass=north, bypass=yes, pinned=true",
        "mkdir -p dir",
        "docker run -p 8080:80 image",
        "ssh -p 22 host",
        "https://social.example/@bob",
        "https://host:8080/@bob",
        "https://cdn.example/react@18/index.js",
        "exit code=3, error code is 500",
        "http 404: code=E123",
        "        pass",
        "{'name': 'title', 'value': 'x'}",
        "unexpected token ';' at 5",
        "KeyError: 'user_id'",
        "Key (id)=(17) already exists.",
        "Duplicate entry '17' for key 'PRIMARY'",
        "INSERT INTO t (name, size) VALUES ('bob', 5)",
        "[SQL: SELECT 1]\n[parameters: ('bob', 5)]",
        "name\n  too short [type=short, input_value='bob', input_type=str]",
        "('title', 'x')",
    ],
)
def test_a_text_without_a_secret_is_left_alone(text: str) -> None:
    """Placeholders, flags and counts are no secrets, and commands have other flags of the same letter."""
    assert scrub_text(text) == text


@pytest.mark.parametrize(
    "name", ["pass", "dbPass", "pw", "user_pin", "otp", "cvv2", "X-Amz-Signature", "sig", "passcode"]
)
def test_short_words_at_the_end_of_a_name_are_names_of_secrets(name: str) -> None:
    """They are common in settings, forms and signed URLs."""
    assert is_sensitive(name)


@pytest.mark.parametrize(
    "name",
    [
        "compass",
        "bypass",
        "pinned",
        "passenger",
        "pass_through",
        "signature_help",
        "design",
        "spin",
        "opinion",
    ],
)
def test_words_that_contain_a_short_one_are_not(name: str) -> None:
    """A filtered value can't help to find the error."""
    assert not is_sensitive(name)


@pytest.mark.parametrize("value", [True, False, None, 3, -1])
@pytest.mark.parametrize("name", ["is_private", "pass", "pin", "signature"])
def test_a_flag_and_a_count_under_a_short_name_are_shown(name: str, value: object) -> None:
    """`is_private` and `pass` are often a flag or a number of something."""
    limits = Limits(text=64, breadth=5, depth=3, hides=is_private)
    assert bounded({name: value, "n": 1}, Room(1000), limits) == {name: value, "n": 1}


@pytest.mark.parametrize("value", [123456789, "x", 1.5, [1]])
def test_any_other_value_under_a_short_name_is_hidden(value: object) -> None:
    """A code of digits is a secret, too."""
    limits = Limits(text=64, breadth=5, depth=3, hides=is_private)
    assert bounded({"user_pin": value}, Room(1000), limits) == {"user_pin": "[Filtered]"}
    assert bounded({"password": None}, Room(1000), limits) == {"password": "[Filtered]"}
