"""`python -m transport_kit` and the command `transport-kit` are the same."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line. Without the extra `cli` it says how to install it, and exits with 2."""
    try:
        import click  # noqa: F401
    except ModuleNotFoundError:
        sys.stderr.write("transport-kit needs the package click: pip install 'transport-kit[cli]'\n")
        sys.exit(2)
    from transport_kit.cli import main as command

    command(prog_name="transport-kit")


if __name__ == "__main__":
    main()
