"""The documentation agrees with the code: options, snippets, links, and no path of a machine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

from transport_kit.cli import main
from transport_kit.config.reference import GROUPS, describe, markdown_table, substitutes_table
from transport_kit.envelope.losses import LossReason

ROOT = Path(__file__).parents[2]
#: Folders of the project; the files at its root belong to it too.
FOLDERS = (".ci", "docs", "example_apps", "integrations", "tests", "transport_kit")
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
_LINK = re.compile(r"\]\(([^)#\s]+)?(#[^)\s]+)?\)")
_BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.M | re.S)


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    """A page that is moved or renamed must not leave broken links."""
    text = re.sub(_BLOCK, "", page.read_text(encoding="utf-8"))
    for target, anchor in _LINK.findall(text):
        if target.startswith(("http://", "https://")):
            continue
        other = (page.parent / target).resolve() if target else page
        assert other.exists(), f"{_name(page)} links to {target}"
        if anchor and other.suffix == ".md":
            assert anchor[1:] in _anchors(other), f"{_name(page)} links to {target}{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_python_snippet_is_python(page: Path) -> None:
    """Code that readers copy must at least compile."""
    for language, code in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            assert ast.parse(code) is not None


@pytest.mark.parametrize("cls", GROUPS)
def test_the_table_of_options_is_the_one_made_from_the_code(cls: type) -> None:
    """The page contains the tables that `transport-kit options --markdown` prints."""
    text = (ROOT / "docs" / "reference" / "options.md").read_text(encoding="utf-8")
    section = text.split(f"`{cls.__name__}`")[1].split("\n## ")[0]
    assert markdown_table(describe(cls)) in section
    assert not [option.type_name for option in describe(cls) if re.search(r"\b_", option.type_name)]


def test_the_table_of_substitutes_is_the_one_made_from_the_code() -> None:
    """Users must not have to guess the consequence of a wrong safeguard."""
    text = (ROOT / "docs" / "reference" / "options.md").read_text(encoding="utf-8")
    assert substitutes_table([option for cls in GROUPS for option in describe(cls)]) in text


def test_every_loss_reason_is_explained() -> None:
    """A reader who sees a reason on the health page must find its meaning."""
    text = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    missing = [reason.value for reason in LossReason if f"`{reason.value}`" not in text]
    assert missing == []


def test_the_project_speaks_of_itself_alone() -> None:
    """No file contains a path of the machine it was written on, or the address of a package registry."""
    registries = ("pypi" + ".org", "pythonhosted" + ".org", "registry" + ".npmjs")
    # The checkout's path may occur in texts (`/app/health`), so a match must be a path to something in it.
    names = "|".join(re.escape(path.name) for path in ROOT.iterdir())
    forbidden = re.compile("|".join((*map(re.escape, registries), rf"{re.escape(str(ROOT))}/(?:{names})\b")))
    # Environments and temporary folders may lie in the checkout, under any name.
    nested = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    matches = []
    for path in (*ROOT.iterdir(), *nested):
        if not path.is_file() or path.name.startswith(".") or "data" in path.relative_to(ROOT).parts:
            continue
        if path.suffix not in {".py", ".md", ".toml", ".txt", ".html", ".css", ".sh", ""}:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        matches += [f"{path}: {word}" for word in forbidden.findall(text)]
    assert matches == []


def test_every_command_and_its_options_are_in_the_reference() -> None:
    """The page must list everything that `--help` lists."""
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    context = click.Context(main)
    for name in main.list_commands(context):
        section = page.split(f"## transport-kit {name}\n")[1].split("\n## ")[0]
        command = main.get_command(context, name)
        assert command is not None
        commands = [command]
        if isinstance(command, click.Group):
            for subcommand in command.commands.values():
                assert f"`{subcommand.name} " in section, f"{name} {subcommand.name}"
                commands.append(subcommand)
        elif name == "send":
            section += page.split("## transport-kit check\n")[1].split("\n## ")[0]
        for command in commands:
            for option in command.params:
                if isinstance(option, click.Option) and option.name != "as_json":
                    assert any(text in section for text in option.opts), f"{name}: {option.opts}"
