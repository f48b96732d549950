"""A watch over the processes that this one has started, where it does not notice the death of one itself."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Mapping

from pg_lightning.processes.forked import LIVENESS_POLL_S, cause_of_death

NOTICE_PATIENCE_S = 5.0  # that a process has to notice the death of another by itself, as in the next collective


def watch_children(
    children: Mapping[str, subprocess.Popen[bytes]],
    noticed: threading.Event,
    give_up: Callable[[str], object],
    patience: float = NOTICE_PATIENCE_S,
) -> None:
    """Returns when all have ended with status 0, or when the main thread has noticed that one did not. For a thread.

    Args:
        children: by the names that the message calls them.
        noticed: set by the main thread when it ends for whatever reason, which it will say itself.
        give_up: called with the names of the dead and the causes of their deaths, if the main thread has not noticed.
        patience: seconds that it has.
    """
    while not any(child.poll() for child in children.values()):
        if all(child.returncode == 0 for child in children.values()) or noticed.wait(LIVENESS_POLL_S):
            return
    if not noticed.wait(patience):
        dead = {name: child.returncode for name, child in children.items() if child.poll()}
        give_up("; ".join(f"{name} {cause_of_death(code)}" for name, code in dead.items()))
