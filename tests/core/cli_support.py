"""Runs the command line in this process, with an environment of its own choosing."""

from __future__ import annotations

import json
import os
from typing import Any

from click.testing import CliRunner, Result

from transport_kit.cli import main

#: What the machine that runs the tests may have set, and what would change an answer.
_VARIABLES = [
    name for name in os.environ if name.upper().endswith("_PROXY") or name.startswith("TRANSPORT_KIT_")
]


def run(*args: str, env: dict[str, str | None] | None = None, stdin: bytes | None = None) -> Result:
    """The result of `transport-kit ARGS`."""
    clean: dict[str, str | None] = dict.fromkeys(_VARIABLES, None)
    return CliRunner(env={**clean, **(env or {})}).invoke(main, args, input=stdin)


def run_json(*args: str, env: dict[str, str | None] | None = None) -> dict[str, Any]:
    """The JSON object that the command prints."""
    result = run(*args, "--json", env=env)
    parsed: dict[str, Any] = json.loads(result.stdout)
    parsed["exit_code"] = result.exit_code
    return parsed
