"""`python -m pg_lightning fit --config …`, and the script `pg-lightning`."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Runs the command line; Ctrl-C during the imports, which take seconds, ends it quietly with status 130."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from pg_lightning.cli import main as run

    run()


if __name__ == "__main__":
    main()
