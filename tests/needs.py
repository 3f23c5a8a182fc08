"""Requirements of a test on the machine and the environment: programs and modules, or a skip."""

from __future__ import annotations

import importlib
import os
import shutil
from types import ModuleType
from typing import NoReturn

import pytest

__all__ = ["do_without", "module", "program"]


def program(name: str) -> str:
    """Return the path of a program; skip the test on a machine without it."""
    return shutil.which(name) or do_without(f"no {name} on this machine")


def module(name: str) -> ModuleType:
    """Import a module; skip the test, or the module that imports this one, in an environment without it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        do_without(f"no package {error.name} in this environment")


def do_without(reason: str) -> NoReturn:
    """Skip the test; fail it where `CI` is set, because a skip there would hide what is broken."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and CI is set", pytrace=False)
    pytest.skip(reason, allow_module_level=True)
