"""How often torch has compiled: a counter that it keeps in private and that has no public face."""

from torch._dynamo.utils import counters


def compiled_graphs() -> int:
    """Graphs that this process has compiled so far."""
    return counters["stats"]["unique_graphs"]
