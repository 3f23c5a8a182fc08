"""Release: which version of the app this is, when nobody says.

Owns where it is looked for, in this order: the environment that platforms set, the git checkout, the
project's own metadata. Runs no program; reads a few small files, once, when a reporter is built. The search
upwards ends below the folders of `GIT_CEILING_DIRECTORIES`, as git's own does.

Threads: any; two that ask at once look twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Final

__all__ = ["detected_release"]

#: Set by build systems and platforms; the first that is set wins.
VARIABLES: Final = (
    "SENTRY_RELEASE",
    "HEROKU_SLUG_COMMIT",
    "HEROKU_BUILD_COMMIT",
    "SOURCE_VERSION",
    "CODEBUILD_RESOLVED_SOURCE_VERSION",
    "CIRCLE_SHA1",
    "GAE_DEPLOYMENT_ID",
    "K_REVISION",
)
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_MAX_BYTES: Final = 1024 * 1024
_MAX_PARENTS: Final = 30


def detected_release(environ: Mapping[str, str] | None = None, folder: Path | None = None) -> str | None:
    """The release, or None when nothing tells.

    Args:
        environ: None reads `os.environ`.
        folder: Where the search for a checkout and a `pyproject.toml` begins, and goes upwards from; None
            is the working directory.
    """
    variables = os.environ if environ is None else environ
    for name in VARIABLES:
        value = variables.get(name, "").strip()
        if value:
            return value
    try:
        begin = (folder or Path.cwd()).resolve()
    except OSError:
        return None  # the working directory is gone
    listed = variables.get("GIT_CEILING_DIRECTORIES", "").split(os.pathsep)
    ceilings = {Path(os.path.realpath(path)) for path in listed if os.path.isabs(path)}
    # The folder that the search begins in is looked into even where it is listed.
    above = takewhile(lambda folder: folder not in ceilings, begin.parents)
    folders = [begin, *above][:_MAX_PARENTS]
    return _first(_commit, folders) or _first(_version, folders)


def _first(look: Callable[[Path], str | None], folders: list[Path]) -> str | None:
    for folder in folders:
        try:
            found = look(folder)
        except (OSError, ValueError):
            continue  # unreadable, or not what its name says
        if found:
            return found
    return None


def _commit(folder: Path) -> str | None:
    """The commit that is checked out in `folder`."""
    git = folder / ".git"
    if git.is_file():  # a worktree or a submodule: a line that says where
        said = _text(git).strip()
        if not said.startswith("gitdir:"):
            return None
        git = folder / said.removeprefix("gitdir:").strip()
    head = _text(git / "HEAD").strip()
    if _COMMIT.fullmatch(head):
        return head
    name = head.removeprefix("ref:").strip()
    if name == head or not name.startswith("refs/") or ".." in name:
        return None
    # Branches of a worktree live in the repository that it belongs to.
    common = git / "commondir"
    shared = (git / _text(common).strip()) if common.is_file() else git
    for place in (git, shared):
        if (place / name).is_file():
            commit = _text(place / name).strip()
            return commit if _COMMIT.fullmatch(commit) else None
    for line in _text(shared / "packed-refs").splitlines():
        commit, _, packed = line.partition(" ")
        if packed == name and _COMMIT.fullmatch(commit):
            return commit
    return None


def _version(folder: Path) -> str | None:
    """`name@version` of the project whose `pyproject.toml` lies in `folder`."""
    # Imported here: 20 ms that only an app without a release and without a repository needs.
    import tomllib
    from importlib import metadata

    project = tomllib.loads(_text(folder / "pyproject.toml")).get("project")
    if not isinstance(project, dict) or not isinstance(project.get("name"), str):
        return None
    name, version = project["name"], project.get("version")
    if not isinstance(version, str):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            return None
    return f"{name}@{version}"


def _text(path: Path) -> str:
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise FileNotFoundError(path.name)
    return path.read_text("utf-8")
