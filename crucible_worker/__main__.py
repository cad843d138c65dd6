"""The entry point. Stays importable on old Pythons, so that they get a sentence and not a traceback."""

import sys


def main() -> None:
    """Refuse a Python that is too old, then run the command line."""
    if sys.version_info < (3, 11):  # noqa: UP036 - the interpreter is the host's, not the one pip chose
        sys.stderr.write(
            "crucible-worker needs Python 3.11 or newer, and this is {}.{}. Start it with a newer python3.\n".format(
                *sys.version_info[:2]
            )
        )
        sys.exit(64)
    from crucible_worker.cli.main import main as run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
