"""Prompts: from a list, a JSONL file, a task of reasoning-gym, or your own code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from pg_lightning.class_path import ClassPath, resolve
from pg_lightning.errors import UserError, one_line
from pg_lightning.run.reading import opened
from pg_lightning.text.calls import arguments_for, reported
from pg_lightning.text.reasoning import PREFIX, task_prompts

MAX_BYTES = 1024**3  # of a JSONL file
MAX_PROMPTS = 1_000_000  # an iterable of one's own may never end
RESERVED = ("prompts", "completions")  # parameters of a reward function that are no columns
_KINDS = {
    "NoneType": "null",
    "bool": "a boolean",
    "int": "a number",
    "float": "a number",
    "str": "a string",
    "list": "a list",
    "dict": "an object",
}
FORMS = (
    "give a list of prompts, the path of a .jsonl file, reasoning_gym:TASK, or the class path module.name of a "
    "function or an iterable"
)


@dataclass(frozen=True)
class Prompt:
    """What the policy continues.

    Attributes:
        text: a string, or the messages of a chat, each `{role, content}`.
        fields: the other columns, such as `{"answer": "7"}`. A reward function gets each as a list.
    """

    text: str | list[dict[str, str]]
    fields: dict[str, object] = field(default_factory=dict)

    def shortened(self, length: int = 60) -> str:
        """The text in quotes, in one line, for messages; of a chat the last message."""
        return shortened(self.text if isinstance(self.text, str) else self.text[-1]["content"], length)


def shortened(text: object, length: int = 60) -> str:
    """A text in quotes and in one line, for messages; a long one with its beginning and its end."""
    line = one_line(text)
    return repr(line if len(line) <= length else f"{line[: length * 2 // 3]} … {line[-length // 3 :]}")


def read_prompts(name: str, source: str | Mapping[str, object] | Sequence[object]) -> list[Prompt]:
    """All prompts of a source.

    Args:
        name: the key in the config, such as `data.prompts`, for the error message.
        source: one of

            - a list of strings, or of mappings with the key `prompt`, a string or the messages of a chat, and other
              columns, the same in each;
            - the path of a `.jsonl` file, each of whose lines is such a mapping; blank lines are skipped;
            - `reasoning_gym:TASK`, alone or as `class_path` beside `init_args`, see `reasoning.task_prompts`;
            - the class path of a function, which is called, or of an iterable, alone or as `class_path` beside
              `init_args`, that returns strings, such mappings, or `Prompt`s.

    Raises:
        UserError: naming the key, the file, and the line or the number of the prompt from 1, if there is no such
            source, it is empty, or one of its prompts has no text, is of another type or has other columns than the
            first; if your code raises.
    """
    if isinstance(source, str) and source.strip().lower().endswith(".jsonl"):
        lines = _lines(name, Path(source.strip()).expanduser())
        return _checked(name, lines, f"the file {source!r}")
    if isinstance(source, (str, Mapping)):
        spec = _spec(name, source)
        path = spec if isinstance(spec, str) else str(spec["class_path"])
        return _checked(name, _numbered(name, path, _of_class_path(name, path, spec)), repr(path))
    if not isinstance(source, (list, tuple)):
        raise UserError(f"{name}: no source of prompts: {shortened(source)}; {FORMS}")
    return _checked(name, ((f"prompt {number}", item) for number, item in enumerate(source, 1)), "the list")


def _spec(name: str, source: str | Mapping[str, object]) -> ClassPath:
    """A class path, perhaps with arguments; refuses other keys and other strings."""
    spec: ClassPath = source.strip() if isinstance(source, str) else dict(source)
    path = spec if isinstance(spec, str) else spec.get("class_path")
    if isinstance(spec, dict) and not spec.keys() <= {"class_path", "init_args"}:
        unknown = ", ".join(map(str, spec.keys() - {"class_path", "init_args"}))
        cure = "; a single prompt is a list of one: [{prompt: …}]" if "prompt" in spec else f"; {FORMS}"
        raise UserError(f"{name}: unknown key {unknown}{cure}")
    if not isinstance(path, str) or not (path.startswith(PREFIX) or "." in path.strip(".")):
        raise UserError(f"{name}: no source of prompts: {shortened(path if path else source)}; {FORMS}")
    if isinstance(spec, str) and Path(path).expanduser().is_file():
        raise UserError(f"{name}: {path!r} is a file whose name does not end in .jsonl; {FORMS}")
    if isinstance(spec, dict):
        spec["init_args"] = spec.get("init_args") or {}
        if not isinstance(spec["init_args"], dict):
            raise UserError(f"{name}.init_args: must be a mapping of arguments, got {shortened(spec['init_args'])}")
    return spec


def _of_class_path(name: str, path: str, spec: ClassPath) -> object:
    """What a class path makes: the prompts of a task, or what the user's function or iterable is."""
    if path.startswith(PREFIX):
        return task_prompts(name, path.removeprefix(PREFIX), {} if isinstance(spec, str) else spec["init_args"])
    with reported(f"{name}: {path}"):
        found, arguments = resolve(name, spec)
    if not callable(found):
        if arguments:
            raise UserError(f"{name}.init_args: {path} takes no arguments; it is no function")
        return found
    arguments = arguments_for(name, path, found, arguments)
    with reported(f"{name}: {path}"):
        return found(**arguments)


def _numbered(name: str, path: str, items: object) -> Iterator[tuple[str, object]]:
    """The items of the user's iterable, each with its place."""
    if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, Iterable):
        raise UserError(f"{name}: {path} gave {type(items).__name__}, not a list of strings or mappings with prompt")
    with reported(f"{name}: {path}"):
        for number, item in enumerate(islice(items, MAX_PROMPTS + 1), 1):
            if number > MAX_PROMPTS:
                raise UserError(f"{name}: {path} gives more than {MAX_PROMPTS:,} prompts; end it before")
            yield f"{path}, prompt {number}", item


def _lines(name: str, path: Path) -> Iterator[tuple[str, object]]:
    """The lines of a JSONL file that are not blank, each with its place; an error quotes nothing of the file."""
    with opened(path, name, MAX_BYTES) as file:
        for number, line in enumerate(file, 1):
            where = f"{str(path)!r} line {number}"
            if not (line := line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip():
                continue
            try:
                content = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(f"{name}: {where} is not text in UTF-8") from error
            except json.JSONDecodeError as error:
                raise UserError(f"{name}: {where} is not JSON: {error.msg} at column {error.colno}") from error
            except (ValueError, RecursionError) as error:
                raise UserError(f"{name}: {where} is not JSON that can be read: {type(error).__name__}") from error
            if not isinstance(content, dict):
                raise UserError(
                    f"{name}: {where} is no object but {_kind(content)}; each line is one object, as "
                    '{"prompt": "…", "answer": "…"}'
                )
            yield where, content


def _checked(name: str, items: Iterable[tuple[str, object]], source: str) -> list[Prompt]:
    """The prompts; refuses what is none, and columns that are not those of the first."""
    prompts: list[Prompt] = []
    first = ""
    for where, item in items:
        prompt = _prompt(f"{name}: {where}", item)
        first = first or where
        if prompts and prompt.fields.keys() != prompts[0].fields.keys():
            lacks, more = prompts[0].fields.keys() - prompt.fields.keys(), prompt.fields.keys() - prompts[0].fields
            what = f"lacks the column {_names(lacks)}" if lacks else f"has the additional column {_names(more)}"
            raise UserError(f"{name}: {where} {what}; the columns of all prompts must be those of {first}")
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"{name}: {source} has no prompts; at least one is needed")
    return prompts


def _prompt(where: str, item: object) -> Prompt:
    """A prompt; `where` begins the messages."""
    if isinstance(item, Prompt):
        item = {"prompt": item.text, **item.fields}
    if isinstance(item, str):
        item = {"prompt": item}
    if not isinstance(item, Mapping):
        quotes = " in quotes" if isinstance(item, (int, float)) else ""  # as 12, or yes in YAML
        raise UserError(f"{where} is {_kind(item)}; give a string{quotes}, or a mapping with the key prompt")
    if "prompt" not in item:
        keys = ", ".join(shortened(key, 30) for key in list(item)[:5]) or "none"
        raise UserError(f"{where} has no key prompt, which is the text to continue; its keys are {keys}")
    text, columns = item["prompt"], {key: value for key, value in item.items() if key != "prompt"}
    if reserved := [key for key in RESERVED if key in columns]:
        raise UserError(f"{where} has a column {reserved[0]}, which reward functions know as something else; rename it")
    if not all(isinstance(key, str) for key in columns):
        raise UserError(f"{where} has a column whose name is no string")
    if isinstance(text, str):
        if not text:
            raise UserError(f"{where} has an empty prompt; a policy continues at least one character")
        return Prompt(_encodable(where, text), columns)
    if not isinstance(text, list) or not text:
        kind = "an empty list" if text == [] else _kind(text)
        raise UserError(f"{where}: prompt must be a string or the messages of a chat, not {kind}")
    return Prompt([_message(where, message) for message in text], columns)


def _message(where: str, message: object) -> dict[str, str]:
    """A message of a chat."""
    if isinstance(message, Mapping) and message.keys() == {"role", "content"}:
        role, content = message["role"], message["content"]
        if isinstance(role, str) and isinstance(content, str):
            return {"role": role, "content": _encodable(where, content)}
    raise UserError(f"{where}: prompt must be a string or messages, each {{role: user, content: …}} of strings")


def _encodable(where: str, text: str) -> str:
    """The text; refuses half of a surrogate pair, which JSON can write and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: prompt has half of a surrogate pair, no character, at {error.start + 1}") from error
    return text


def _kind(value: object) -> str:
    """The type of a value, in JSON's words where it has some."""
    kind = type(value)
    return _KINDS.get(kind.__name__, kind.__name__)


def _names(columns: Iterable[str]) -> str:
    return ", ".join(shortened(column) for column in sorted(columns))
