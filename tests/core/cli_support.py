"""Runs the command line in this process, with an environment that the test chooses."""

from __future__ import annotations

import json
import os
from typing import Any

from click.testing import CliRunner, Result

from transport_kit.cli import main

#: Variables of the machine that runs the tests, which could change the results.
_VARIABLES = [
    name for name in os.environ if name.upper().endswith("_PROXY") or name.startswith("TRANSPORT_KIT_")
]


def run(*args: str, env: dict[str, str | None] | None = None, stdin: bytes | None = None) -> Result:
    """Return the result of `transport-kit ARGS`."""
    clean: dict[str, str | None] = dict.fromkeys(_VARIABLES, None)
    return CliRunner(env={**clean, **(env or {})}).invoke(main, args, input=stdin)


def run_json(*args: str, env: dict[str, str | None] | None = None) -> dict[str, Any]:
    """Return the JSON object that the command prints, with its exit status as `exit_code`."""
    result = run(*args, "--json", env=env)
    parsed: dict[str, Any] = json.loads(result.stdout)
    parsed["exit_code"] = result.exit_code
    return parsed
