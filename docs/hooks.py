"""Hooks that MkDocs runs when it builds the site; the pages stay readable in the repository.

- A link to a file outside of `docs/` leads to a page that shows the file.
- A link alone on its line to a function, `[…](../pg_lightning/returns.py#gae)`, is followed by the function's source.
- A link titled `against`, `[…](../configs/a.yaml "against b.yaml")`, is followed by the diff from b (same folder) to a.
- Equations become MathML, which a browser shows without a script.
"""

from __future__ import annotations

import ast
import difflib
import html
import os
import re
import textwrap
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
SHOWN = "repository"  # the folder of the site with the files from outside of docs/
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml"}
TARGET = r'\]\(([^)#:\s]+)(?:#([\w.-]+))?(?: "against ([^"]+)")?\)'
LINK = re.compile(TARGET)
ALONE = re.compile(rf"\[[^\]]+{TARGET}")
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)

_shown: dict[str, str] = {}  # pages of the site that show a file, and the file, from the root of the repository


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for every file of the repository that a page, or a page added here, links to."""
    _shown.clear()
    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    for page in pages:
        for target, *_ in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            path = os.path.normpath(os.path.join(os.path.dirname(page), target))
            if path.startswith(("docs/", "..")) or not (ROOT / path).is_file() or site_uri(path) in _shown:
                continue
            text = (ROOT / path).read_text(encoding="utf-8")
            if path.endswith(".md"):
                pages.append(path)
            else:
                text = f"# {path}\n\n{fence(text, path)}"
            _shown[site_uri(path)] = path
            files.append(File.generated(config, site_uri(path), content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites links to the pages of the site, and inserts sources and diffs after links that request them."""
    here = _shown.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return with_sources(markdown, here) if here.endswith(".md") else markdown


def on_page_content(content: str, **_: Any) -> str:
    """Equations to MathML."""
    return EQUATION.sub(lambda found: mathml(found[2], found[1] == "div"), content)


def with_sources(markdown: str, here: str) -> str:
    """The text of a page for the site; `here` is its file, relative to the root of the repository."""
    folder, folder_on_site = os.path.dirname(here), os.path.dirname(site_uri(here))

    def path_of(target: str) -> str:
        return os.path.normpath(os.path.join(folder, target))

    def on_site(found: re.Match[str]) -> str:
        path = path_of(found[1])
        if path.startswith("..") or not (ROOT / path).is_file():
            return found[0]  # MkDocs will name it
        anchor = f"#{found[2]}" if found[2] and path.endswith(".md") else ""
        return f"]({os.path.relpath(site_uri(path), folder_on_site)}{anchor})"

    lines = []
    for line in markdown.splitlines():
        lines.append(LINK.sub(on_site, line))
        alone = ALONE.fullmatch(line)
        if alone and alone[3]:
            lines += ["", difference(path_of(os.path.join(os.path.dirname(alone[1]), alone[3])), path_of(alone[1]))]
        elif alone and alone[2] and alone[1].endswith(".py"):
            lines += ["", source(path_of(alone[1]), alone[2])]
    return "\n".join(lines)


def site_uri(path: str) -> str:
    """The path of the page of a repository file on the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{SHOWN}/{path}" if path.endswith(".md") else f"{SHOWN}/{path}.md"


def source(path: str, name: str) -> str:
    """A block of code: a function, a class or a method `Class.method` of a file.

    Raises:
        PluginError: if the file has none of that name.
    """
    text = (ROOT / path).read_text(encoding="utf-8")
    node: Any = ast.parse(text)
    for part in name.split("."):
        node = next((child for child in node.body if getattr(child, "name", None) == part), None)
        if node is None:
            raise PluginError(f"{path} has no {name}, which a page shows")
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    lines = text.splitlines()[first - 1 : node.end_lineno]
    return fence(textwrap.dedent("\n".join(lines)), path, f' linenums="{first}"')


def difference(before: str, after: str) -> str:
    """A block of code: the unified diff of two files; Python files without docstrings."""
    texts = []
    for path in (before, after):
        if not (ROOT / path).is_file():
            raise PluginError(f"there is no {path}, which a page compares with {after}")
        text = (ROOT / path).read_text(encoding="utf-8")
        texts.append((without_docstrings(text) if path.endswith(".py") else text).splitlines())
    lines = difflib.unified_diff(*texts, before, after, lineterm="")
    return fence("\n".join(lines), f"{os.path.basename(before)} → {os.path.basename(after)}", language="diff")


def without_docstrings(text: str) -> str:
    """The source of a module without docstrings and without the empty lines after them."""
    lines: list[str | None] = [*text.splitlines()]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            docstring, end = node.body[0], node.body[0].end_lineno or 0
            end += end < len(lines) and not lines[end]
            lines[docstring.lineno - 1 : end] = [None] * (end - docstring.lineno + 1)
    return "\n".join(line for line in lines if line is not None)


def fence(text: str, title: str, options: str = "", language: str | None = None) -> str:
    """A block of code; its fence is longer than any fence in a source."""
    language = language or LANGUAGES.get(os.path.splitext(title)[1], "text")
    return f'~~~~~~ {{.{language} title="{title}"{options}}}\n{text.rstrip()}\n~~~~~~'


def mathml(latex: str, is_block: bool) -> str:
    """An equation as MathML, which a browser shows without a script."""
    made = convert(html.unescape(latex).strip(), display="block" if is_block else "inline")
    return made.replace("<mi>log</mi>", '<mo lspace="0.17em" rspace="0.17em">log</mo>')  # a function's name has space
