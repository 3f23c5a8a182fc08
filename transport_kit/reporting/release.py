"""Release: detects the version of the app if the options name none.

Looks, in this order, at the environment variables that platforms set, the git checkout and the project's own
metadata. Runs no program; reads a few small files, once, when a reporter is built. The search upwards ends
below the folders of `GIT_CEILING_DIRECTORIES`, as git's own does.

Threads: any; nothing is shared.
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
    """Return the release, or None if none is found.

    Args:
        environ: None reads `os.environ`.
        folder: Start of the upward search for a checkout and a `pyproject.toml`; None is the working
            directory.
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
    # The start folder is searched even if it is listed.
    above = takewhile(lambda folder: folder not in ceilings, begin.parents)
    folders = [begin, *above][:_MAX_PARENTS]
    return _first(_commit, folders) or _first(_version, folders)


def _first(read: Callable[[Path], str | None], folders: list[Path]) -> str | None:
    for folder in folders:
        try:
            release = read(folder)
        except (OSError, ValueError):
            continue  # unreadable, or not in the expected format
        if release:
            return release
    return None


def _commit(folder: Path) -> str | None:
    """Return the commit that is checked out in `folder`; None if it is no checkout."""
    git = folder / ".git"
    if git.is_file():  # a worktree or a submodule: one line with the path
        pointer = _text(git).strip()
        if not pointer.startswith("gitdir:"):
            return None
        git = folder / pointer.removeprefix("gitdir:").strip()
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
    """Return `name@version` of the project whose `pyproject.toml` lies in `folder`."""
    # Imported here: takes 20 ms, which only an app without a release and a repository should pay.
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
