"""The program `processor`, also as `python -m processor`."""

from __future__ import annotations

import sys

from processor.cli import main as run_command


def main() -> None:
    """Run the command line of this process and exit with its code."""
    sys.exit(run_command())


if __name__ == "__main__":
    main()
