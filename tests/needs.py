"""What a test needs of the machine besides Python."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

__all__ = ["do_without", "program"]


def program(name: str) -> str:
    """Its path; a machine without it does without the test."""
    return shutil.which(name) or do_without(f"no {name} on this machine")


def do_without(reason: str) -> NoReturn:
    """Skip the test, and where `CI` is set fail it: what a skip hides there stays broken."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and CI is set", pytrace=False)
    pytest.skip(reason)
