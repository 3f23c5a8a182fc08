"""Detecting the release: from the environment, from git, from the project's metadata."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.core.reporting_support import Kept
from tests.needs import program
from transport_kit.config.options import ReporterOptions
from transport_kit.reporting import Reporter
from transport_kit.reporting.release import VARIABLES, detected_release
from transport_kit.runtime.version import VERSION

Finder = Callable[[Path], str | None]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(name="release_of")
def _release_of(tmp_path: Path) -> Finder:
    """Return the release of a folder; the search ends at the test's folder, which may be in a checkout."""
    return lambda folder: detected_release({"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}, folder)


def git(folder: Path, *arguments: str) -> str:
    """Run git without the user's configuration, and return its output."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, env=environ, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_environment_comes_first(release_of: Finder, tmp_path: Path) -> None:
    """The build system knows best; an empty variable is ignored."""
    put(tmp_path / ".git" / "HEAD", COMMIT)
    assert detected_release({VARIABLES[0]: " shop@1 ", VARIABLES[1]: "x"}, tmp_path) == "shop@1"
    assert detected_release({VARIABLES[0]: " ", VARIABLES[1]: "x"}, tmp_path) == "x"
    assert release_of(tmp_path) == COMMIT


def test_the_commit_is_read_as_git_has_it(release_of: Finder, tmp_path: Path) -> None:
    """A branch, a packed branch, a detached head and a worktree, each from a folder below."""
    program("git")
    repository = tmp_path / "repository"
    (repository / "shop").mkdir(parents=True)
    git(repository, "init", "-q", "-b", "main")
    git(repository, "commit", "-q", "--allow-empty", "-m", "one")
    commit = git(repository, "rev-parse", "HEAD")
    assert release_of(repository / "shop") == commit
    git(repository, "pack-refs", "--all")
    assert not (repository / ".git" / "refs" / "heads" / "main").exists()
    assert release_of(repository) == commit
    git(repository, "worktree", "add", "-q", "-b", "side", str(tmp_path / "worktree"))
    assert release_of(tmp_path / "worktree") == commit
    git(repository, "checkout", "-q", "--detach")
    assert release_of(repository) == commit


@pytest.mark.parametrize(
    "head",
    [
        "",
        "ref: refs/heads/none",
        "ref: ../../etc/passwd",
        "ref: refs/../../x",
        "nonsense",
        "ref: refs/heads/bad",
    ],
)
def test_a_checkout_that_says_nothing_is_passed_over(release_of: Finder, tmp_path: Path, head: str) -> None:
    """An incomplete checkout, or a file that only looks like one."""
    put(tmp_path / ".git" / "HEAD", head)
    put(tmp_path / ".git" / "packed-refs", f"# pack-refs\n{COMMIT} refs/heads/other\nbad refs/heads/bad\n")
    put(tmp_path / ".git" / "refs" / "heads" / "bad", "not a commit")
    put(tmp_path / "pyproject.toml", '[project]\nname = "shop"\nversion = "1.2"\n')
    assert release_of(tmp_path) == "shop@1.2"


def test_a_git_file_that_is_none_is_passed_over(release_of: Finder, tmp_path: Path) -> None:
    """Another file may have the name `.git`."""
    put(tmp_path / ".git", "nonsense")
    put(tmp_path / "pyproject.toml", '[project]\nname = "shop"\nversion = "1.2"\n')
    assert release_of(tmp_path) == "shop@1.2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[project]\nname = "transport-kit"\ndynamic = ["version"]\n', f"transport-kit@{VERSION}"),
        ('[project]\nname = "no-such-package-anywhere"\n', None),
        ("[tool.x]\n", None),
        ('project = "x"\n', None),
        ("[project]\nname = 7\n", None),
        ("not toml", None),
        ("\ud800", None),
    ],
)
def test_the_projects_metadata_comes_last(
    release_of: Finder, tmp_path: Path, text: str, expected: str | None
) -> None:
    """Its version in the file, or else the installed version."""
    (tmp_path / "pyproject.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert release_of(tmp_path) == expected


def test_a_huge_file_is_not_read(release_of: Finder, tmp_path: Path) -> None:
    """Detection must not slow down the start of an app."""
    put(tmp_path / "pyproject.toml", '[project]\nname = "shop"\nversion = "1"\n' + "#" * 2_000_000)
    assert release_of(tmp_path) is None


def test_the_search_ends_below_a_folder_that_git_does_not_climb_into(tmp_path: Path) -> None:
    """Git's own limit for a home that is a repository, or a parent on a slow network, applies here too."""
    begin = tmp_path / "above" / "shop" / "deep"
    begin.mkdir(parents=True)
    put(tmp_path / "above" / ".git" / "HEAD", COMMIT)
    (tmp_path / "other-name").symlink_to(tmp_path / "above")
    for ceiling, expected in (("above", None), ("other-name", None), ("above/shop", None), ("none", COMMIT)):
        listed = os.pathsep.join(("relative", str(tmp_path / ceiling), str(tmp_path.parent)))
        assert detected_release({"GIT_CEILING_DIRECTORIES": listed}, begin) == expected, ceiling
    own = {"GIT_CEILING_DIRECTORIES": str(tmp_path / "above")}
    assert detected_release(own, tmp_path / "above") == COMMIT


def test_a_working_directory_that_is_gone_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as after a deployment that replaced the folder."""

    def gone() -> Path:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "cwd", gone)
    assert detected_release({}) is None


def test_a_reporter_looks_only_when_nothing_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configured release wins, detection can be off, and a value that servers would discard is ignored."""
    monkeypatch.setenv("SENTRY_RELEASE", "found@1")
    with Kept() as kept:
        Reporter(kept).capture_message("m")
        Reporter(kept, ReporterOptions(release="given@2")).capture_message("m")
        Reporter(kept, ReporterOptions(detect_release=False)).capture_message("m")
        monkeypatch.setenv("SENTRY_RELEASE", "feature/x")
        Reporter(kept).capture_message("m")
        assert [event.get("release") for event in kept.events] == ["found@1", "given@2", None, None]
