"""`python -m pg_lightning fit --config …`, and the script `pg-lightning`."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Runs the command line; Ctrl-C during the imports, which take seconds, ends it quietly with status 130.

    In a folder that has been removed, where torch cannot be imported, it ends in one line with status 2.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        os.getcwd()
    except OSError:
        sys.stderr.write("error: the working folder is gone; change to one that exists\n")
        raise SystemExit(2) from None
    from pg_lightning.cli import main as run

    run()


if __name__ == "__main__":
    main()
