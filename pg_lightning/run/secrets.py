"""Passwords, keys and tokens in options: they are used, but neither written to a file nor repeated in a message.

A value is a secret if the name of its key says so, such as `api_key` or `token`, and so is the password of a URL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pg_lightning.errors import UserError

HIDDEN = "***"  # in place of a secret
WORDS = r"passw(?:or)?d|passwd|passphrase|secret|token|api_?key|access_?key|private_?key|credentials?|auth"
NAME = re.compile(rf"(?:.*[_.-])?(?:{WORDS})", re.IGNORECASE)
URL = re.compile(r"(\w[\w+.-]*://[^\s/@:'\"]*:)[^\s/@'\"]+(?=@)")
QUERY = re.compile(rf"([?&](?:[\w-]*[_-])?(?:{WORDS})=)[^&\s'\"]+", re.IGNORECASE)
# `'token': 'x'`, `token: 'x'`, `token=x` in a text; not `token: expected int`.
PAIR = re.compile(
    rf"""((?<![\w.-])["']?(?:[\w.-]*[_.-])?(?:{WORDS}|key)["']?(?:\s*[:=]\s*["']|=))(?!{re.escape(HIDDEN)})[^"'\s,}}\]]+""",
    re.IGNORECASE,
)
WAS_HIDDEN = re.compile(rf"(?::{re.escape(HIDDEN)}@|={re.escape(HIDDEN)}(?:&|$))")
GOT = re.compile(r"(got ).*")


def without_secrets(value: object, key: str = "", environment: bool = False) -> object:
    """A copy of nested dicts and lists in which every secret is `***`; numbers are none.

    Args:
        value: an option, or all of them.
        key: its name.
        environment: it belongs to the arguments of an environment, where `key` names a secret too.
    """
    if isinstance(value, dict):
        inside = environment or key.endswith("env_kwargs")
        return {name: without_secrets(part, str(name), inside) for name, part in value.items()}
    if isinstance(value, list):
        return [without_secrets(part, key, environment) for part in value]
    if not isinstance(value, str):
        return value
    if NAME.fullmatch(key) or (environment and key.lower() == "key"):
        return HIDDEN
    return QUERY.sub(rf"\1{HIDDEN}", URL.sub(rf"\1{HIDDEN}", value))


def refuse_hidden(value: object, name: str = "") -> None:
    """Refuses options that come from a file in which `without_secrets` has hidden them.

    Raises:
        UserError: naming the first.
    """
    if isinstance(value, Mapping):
        for key, part in value.items():
            refuse_hidden(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for part in value:
            refuse_hidden(part, name)
    elif isinstance(value, str) and (value == HIDDEN or WAS_HIDDEN.search(value)):
        raise UserError(f"{name}: {HIDDEN} is a secret that was not saved; give its value again")


def without_secrets_in(message: str) -> str:
    """A message about options, in which every secret is `***`."""
    key = message.partition(":")[0]
    if NAME.fullmatch(key) or re.fullmatch(r".*env_kwargs\.key", key):
        message = GOT.sub(rf"\1{HIDDEN}", message)
    message = QUERY.sub(rf"\1{HIDDEN}", URL.sub(rf"\1{HIDDEN}", message))
    return PAIR.sub(rf"\1{HIDDEN}", message)
