"""Watches child processes whose death this process may not notice by itself."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Mapping

from pg_lightning.processes.forked import LIVENESS_POLL_S, cause_of_death

NOTICE_PATIENCE_S = 5.0  # for this process to notice the death of a child by itself, as in the next collective


def watch_children(
    children: Mapping[str, subprocess.Popen[bytes]],
    noticed: threading.Event,
    give_up: Callable[[str], object],
    patience: float = NOTICE_PATIENCE_S,
) -> None:
    """Returns when all children have ended with status 0, or the main thread has noticed a death. Runs in a thread.

    Args:
        children: by their names in the message.
        noticed: set by the main thread when it ends for any reason, which it then reports itself.
        give_up: called with the names and causes of death of the dead children, if the main thread has not noticed.
        patience: seconds for the main thread to notice.
    """
    while not any(child.poll() for child in children.values()):
        if all(child.returncode == 0 for child in children.values()) or noticed.wait(LIVENESS_POLL_S):
            return
    if not noticed.wait(patience):
        dead = {name: child.returncode for name, child in children.items() if child.poll()}
        give_up("; ".join(f"{name} {cause_of_death(code)}" for name, code in dead.items()))
