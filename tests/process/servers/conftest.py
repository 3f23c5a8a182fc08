"""Prints the table of the rows that ran, at the end of a run."""

from __future__ import annotations

import pytest

from tests.process.servers.table import table


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table. With pytest-xdist the reporting process has not loaded this file, and prints none."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    records = [value for report in reports for name, value in report.user_properties if name == "server"]
    if records:
        terminalreporter.section("servers")
        terminalreporter.write_line(table(records))
