"""The command line, where Lightning's watch over the ranks that it starts looks at them all the time.

By itself it looks every five seconds; whatever is done between a death and its look passes here as well.
"""

from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver as Observer

from pg_lightning.cli import main

if __name__ == "__main__":
    *others, sleep_period = Observer.__init__.__defaults__
    assert sleep_period == 5
    Observer.__init__.__defaults__ = (*others, 0.01)
    main()
