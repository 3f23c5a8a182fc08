"""The SIGKILL campaign in its short form; `make chaos` runs the long one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("spool_campaign.py")


def run(*arguments: str) -> str:
    found = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=1800,
    )
    assert found.returncode == 0, found.stdout
    return found.stdout


def test_no_kill_loses_what_was_accepted() -> None:
    """Writers, drainer or all killed at random; short writes, unseen forks, threads, a full disk: three
    trials of each kind."""
    said = run("--trials", "21", "--seconds", "45")
    assert " 0 lost" in said
    assert "'drainer'" in said


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_no_kill_of_a_thousand_trials_loses_what_was_accepted() -> None:
    """The same, as often as TRIALS says."""
    assert " 0 lost" in run("--trials", os.environ.get("TRIALS", "1000"))
