"""Real servers under load, ended as a deployment ends them: accepted events arrive, once.

A row whose processes get no notice of their end loses events in memory; the same row with a spool loses none.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from tests.needs import do_without
from tests.process.servers.harness import ROOT, missing, run
from tests.process.servers.rows import IN_FLIGHT, NONE, ROWS, SHUTDOWN_TIMEOUT, Row
from tests.process.servers.table import record
from tests.timing import scaled

#: Largest number of envelopes that a killed drainer had claimed.
MAX_SENDERS = 8
#: Seconds beyond the request in flight and the time to drain.
SLACK: Final = scaled(2.0)
#: Signs of a crash. A connection that hypercorn leaves to the collector after its loop was closed is none of
#: ours.
CRASH = re.compile(
    r".*(?:SIGABRT|SIGSEGV|Fatal Python error|RecursionError"
    r"|Exception ignored in(?!: <function _SelectorTransport\.__del__)).*"
)
HANGS = ("gunicorn gthread", "gunicorn uvicorn", "uvicorn --workers 2", "granian", "hypercorn", "waitress")


def of(row: Row) -> object:
    return pytest.param(row, id=row.name, marks=() if row.quick else pytest.mark.servers)


@pytest.mark.parametrize("row", [of(row) for row in ROWS])
def test_a_server_that_ends_under_load_keeps_what_the_table_says(
    row: Row, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A deployment ends the server while its last errors wait, which matter most."""
    problem = missing(row)
    if problem is not None:
        do_without(problem)
    outcome = run(row, tmp_path)
    # Like `record_property`, which would warn if `--junitxml` writes the family xunit2.
    request.node.user_properties.append(("server", record(row, outcome)))
    assert outcome.hooks <= row.hooks, outcome.output
    if row.loses:
        assert outcome.lost > 0, "a hook now sees the end of this server: change its row"
    else:
        assert outcome.lost == 0, outcome.output
    assert outcome.duplicates <= (MAX_SENDERS * row.workers if row.spool else 0)
    assert outcome.seconds <= IN_FLIGHT + SHUTDOWN_TIMEOUT + SLACK, outcome.output
    assert CRASH.findall(outcome.output) == []


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in HANGS], ids=lambda row: row.name)
def test_a_receiver_that_hangs_costs_the_shutdown_timeout_and_no_more(row: Row, tmp_path: Path) -> None:
    """Process managers kill a process that is late, which would lose more events."""
    timeout = scaled(0.5)
    outcome = run(row, tmp_path, hangs=True, shutdown_timeout=timeout)
    assert outcome.delivered == 0
    assert timeout <= outcome.seconds <= IN_FLIGHT + timeout + SLACK, outcome.output


def test_the_documentation_shows_each_row() -> None:
    """The table in the documentation must list the tested servers."""
    lines = (ROOT / "docs" / "operations.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("| ")]
    shown = {(name, app): set(hook.split(" or ")) for _, name, app, hook, *rest in cells if len(rest) == 6}
    assert [row.name for row in ROWS if not shown.get((row.name, row.app), {NONE, ""}) <= row.hooks] == []
    assert len(shown) == len(ROWS) + 2  # the header and the ruler


def test_rows_are_told_apart_by_name_and_each_loss_has_its_spool() -> None:
    """A row that loses events must have a remedy in the table."""
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert [row.name for row in ROWS if row.loses and f"{row.name}, spool" not in names] == []
    assert [row.name for row in ROWS if row.loses and "spool" not in row.needs] == []
