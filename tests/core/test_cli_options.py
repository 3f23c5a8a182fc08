"""`transport-kit options`: the options, from the same source as the documentation."""

from __future__ import annotations

import dataclasses
import json

import pytest
from click.testing import CliRunner

from transport_kit.cli import main
from transport_kit.config.reference import GROUPS, describe, markdown_table, meaning


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["options", *arguments])
    return result.exit_code, result.output


def test_every_option_is_listed_once_with_its_default() -> None:
    """An option that is not in the list does not exist."""
    status, output = run()
    names = [line.split("\t")[0] for line in output.splitlines()]
    assert status == 0
    assert names == [field.name for options in GROUPS for field in dataclasses.fields(options)]
    assert "max_senders\tint\t1 to 64\t8" in output.splitlines()


@pytest.mark.parametrize("name", ["spool_max_age", "SPOOL_MAX_AGE", "TRANSPORT_KIT_SPOOL_MAX_AGE"])
def test_one_option_is_described_by_any_of_its_names(name: str) -> None:
    """A user looks up a variable with the spelling of the deployment."""
    status, output = run(name)
    assert status == 0
    assert "TRANSPORT_KIT_SPOOL_MAX_AGE" in output
    assert "1 to 315360000 seconds" in output
    assert "604800.0" in output


def test_json_holds_what_the_table_holds() -> None:
    """Deployment tools check names and bounds without parsing a table."""
    status, output = run("max_senders", "--json")
    assert status == 0
    assert json.loads(output) == [
        {
            "name": "max_senders",
            "variable": "TRANSPORT_KIT_MAX_SENDERS",
            "type_name": "int",
            "bounds": "1 to 64",
            "default": "8",
            "secret": False,
            "meaning": meaning("max_senders"),
            "substitute": "its default, 8, is used",
            "health": "warn",
        }
    ]


def test_secrets_are_marked() -> None:
    """The output shows that the value is kept out of every repr."""
    assert {option.name for options in GROUPS for option in describe(options) if option.secret} == {
        "proxy",
        "proxy_headers",
        "flush_token",
    }
    assert "left out of every repr" in run("proxy")[1]


def test_markdown_is_the_documentation_s_table() -> None:
    """This command makes the tables of the documentation."""
    output = run("--markdown")[1]
    assert all(markdown_table(describe(options)) in output for options in GROUPS)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_sender", "max_senders"),
        ("TRANSPORT_KIT_SPOOL_AGE", "spool_max_age"),
        ("zzz", "lists all of them"),
    ],
)
def test_an_unknown_name_ends_with_status_2_and_a_hint(name: str, hint: str) -> None:
    """The hint is the nearest name."""
    status, output = run(name)
    assert status == 2
    assert hint in output


def test_an_unknown_name_can_not_steer_the_terminal() -> None:
    """A pasted name may contain control characters."""
    assert "\x1b" not in run("\x1b[2Jx")[1]


def test_the_option_of_no_name_is_an_error() -> None:
    """Help texts are made at import, so a renamed option must not leave an empty one."""
    with pytest.raises(LookupError, match="no option zzz"):
        meaning("zzz")


def test_an_option_without_a_description_is_an_error() -> None:
    """Every option needs a line in the docstring."""

    @dataclasses.dataclass
    class Undescribed:
        """Attributes:
        other: Another one.
        """

        one: int = 1

    with pytest.raises(LookupError, match="Undescribed does not describe one"):
        describe(Undescribed)
