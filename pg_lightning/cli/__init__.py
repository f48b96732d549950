"""The command line: `python -m pg_lightning {fit,validate,test,predict,record,export,diagnose,plot,study,compare}`."""

from pg_lightning.cli.main import main

__all__ = ["main"]
