"""The command `transport-kit`, also run by `python -m transport_kit`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; without the extra `cli`, print the install line and exit with status 2."""
    try:
        import click  # noqa: F401
    except ModuleNotFoundError:
        sys.stderr.write("transport-kit needs the package click: pip install 'transport-kit[cli]'\n")
        sys.exit(2)
    from transport_kit.cli import main as command

    command(prog_name="transport-kit")


if __name__ == "__main__":
    main()
