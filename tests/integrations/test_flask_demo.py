"""`make demo APP=...`: each of the example apps shows one error arrive."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("app", ["django", "fastapi", "flask"])
def test_the_demo_shows_the_error_of_each_framework(app: str) -> None:
    """Django users want a Django demo; the default app has its own test."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TRANSPORT_KIT_")}
    environ |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'integrations'}", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "example_apps" / "demo.py"), app, "--once"],
        check=False,
        env=environ,
        timeout=50,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for pattern in (
        rf"made with +{app}",
        r"GET /carts/2 +500 Internal Server Error",
        r"type +CartError",
        r"culprit +app\.py:\d+ in price_of",
        r"delivered +error 1",
    ):
        assert re.search(pattern, done.stdout), pattern
    assert done.stderr == ""


def test_make_demo_runs_the_app_that_was_asked_for() -> None:
    """An unknown app is refused with a message."""
    for arguments, ran in (
        (["APP=flask", "ONCE=1"], "example_apps/demo.py flask --once"),
        ([], "example_apps/demo.py starlette"),
    ):
        done = subprocess.run(
            ["make", "-n", "-C", str(ROOT), "demo", *arguments],
            check=True,
            timeout=30,
            capture_output=True,
            text=True,
        )
        assert ran in done.stdout
    wrong = [sys.executable, str(ROOT / "example_apps" / "demo.py"), "rails"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(wrong, check=False, timeout=30, capture_output=True, text=True, env=environ)
    assert done.returncode == 2
    assert "invalid choice" in done.stderr
