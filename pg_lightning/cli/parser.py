"""The parser of all commands: it reports errors in one line."""

from __future__ import annotations

import difflib
import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from pg_lightning.class_path import new_name
from pg_lightning.errors import one_line
from pg_lightning.run.secrets import without_secrets_in

# Patterns of jsonargparse's error messages.
UNKNOWN_KEY = re.compile(r"(?:unrecognized arguments: --|does not accept option '|Option ')([^\s'=]+)(?!.*before)")
SUGGESTION = "; did you mean "
KEY = re.compile(r'^Parser key "(.+?)":? ?')
EXPECTED_TYPE = re.compile(r"Expected an? (?:<class '(.+?)'>|typing\.Literal\[(.+)\])(?:\. Got value: .*)?$")
MISSING = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")  # a class that may have moved


class Parser(LightningArgumentParser):
    """Reports an error in one line: the key, what is wrong with it, and the most similar existing key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, allow_abbrev=False)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exits with status 2, or passes the message to the parent parser."""
        if unknown := UNKNOWN_KEY.search(message):
            keys = getattr(ex, "subcommand_parser", self).get_defaults().keys()
            nearest = difflib.get_close_matches(unknown[1], keys, n=1, cutoff=0.8)
            message = f'Parser key "{unknown[1]}":\n  unknown key' + "".join(f"{SUGGESTION}{key}?" for key in nearest)
        if not self.exit_on_error:
            super().error(message, ex)
        line = without_secrets_in(complaint(message))
        found = MISSING.search(line)
        name = new_name(".".join(found.groups())) if found else ""
        self.exit(2, f"error: {line}{f'; it is {name} now' if name else ''}\n")


def complaint(message: str) -> str:
    """The cause of an error of jsonargparse, after the key that it belongs to.

    The error is a tree with one node per line and depth by indentation: keys, class paths, and the types that were
    tried. The cause is the deepest line; the key is composed from the lines above it.
    """
    if "Parser key" not in message:
        return one_line(message)
    tree = [(len(line) - len(line.lstrip(" -")), line.lstrip(" -")) for line in message.splitlines() if line.strip()]
    deepest = max(depth for depth, _ in tree)
    first = next(i for i, (depth, _) in enumerate(tree) if depth == deepest)
    keys: list[str] = []
    level = deepest + 1
    for depth, text in reversed(tree[: first + 1]):
        if depth < level:
            level = depth
            keys += KEY.findall(text)
    keys = list(dict.fromkeys(reversed(keys)))
    causes = [KEY.sub("", text) for depth, text in tree if depth == deepest]
    types = [EXPECTED_TYPE.match(cause) for cause in causes]
    if all(types):
        names = dict.fromkeys(match[1] or f"one of {match[2]}" for match in types if match and match[1] != "NoneType")
        got = re.search(r"(?:Got|Given) value: (.*)", "\n".join(text for _, text in tree[first:]))
        cause = f"expected {' or '.join(names)}" + (f", got {got[1]!r}" if got else "")
    else:
        cause = next(cause for cause, match in zip(causes, types, strict=True) if not match)
    return f"{'.'.join(keys)}: {cause.replace(SUGGESTION, SUGGESTION + '.'.join([*keys[:-1], '']))}"
