"""The SIGKILL campaign in its short form; `make chaos` runs the long one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("spool_campaign.py")


def run(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=1800,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_no_kill_loses_what_was_accepted() -> None:
    """Three trials of each kind: kills of writers, the drainer or all; short writes, forks, threads, a full
    disk.
    """
    output = run("--trials", "21", "--seconds", "45")
    assert " 0 lost" in output
    assert "'drainer'" in output


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_no_kill_of_a_thousand_trials_loses_what_was_accepted() -> None:
    """The same with TRIALS trials."""
    assert " 0 lost" in run("--trials", os.environ.get("TRIALS", "1000"))
