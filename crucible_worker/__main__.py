"""The entry point."""

import sys
from typing import NoReturn

from crucible_worker.cli.main import main as run


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
