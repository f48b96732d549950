"""The rules of the house: sizes of files, functions and classes, and one table of layers."""

import ast
import re
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # Python 3.11


ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pg_lightning"
MAX_FILE, MAX_FUNCTION, MAX_METHODS = 300, 60, 20
FILES = sorted(PACKAGE.rglob("*.py"))


def sizes(path):
    """Lines of a file and of its functions, methods of its classes, by `file`, `file:name`."""
    name, text = path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8")
    yield name, len(text.splitlines()), MAX_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            yield f"{name}:{node.name}", node.end_lineno - node.lineno + 1, MAX_FUNCTION
        if isinstance(node, ast.ClassDef):
            yield f"{name}:{node.name}", sum(isinstance(x, ast.FunctionDef) for x in node.body), MAX_METHODS


def test_files_functions_and_classes_keep_their_size():
    too_large = {}
    for path in FILES:
        for name, size, limit in sizes(path):
            if size > limit:
                too_large[name] = size
    assert too_large == {}


def test_the_table_of_layers_is_that_of_the_import_rule():
    rows = re.findall(r"^\| \d+ \| ([^|]+) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    table = [set(re.findall(r"`(\w+)`", row)) for row in rows]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = project["tool"]["importlinter"]["contracts"]
    layers = [set(re.findall(r"pg_lightning\.(\w+)", layer)) for layer in contract["layers"]]
    assert table == layers
    modules = {
        path.stem
        for path in PACKAGE.iterdir()
        if path.name not in ("__init__.py", "__main__.py", "py.typed", "__pycache__")
    }
    assert set().union(*layers) == modules


@pytest.mark.parametrize("folder", ["algorithms"])
def test_no_algorithm_asks_how_many_ranks_there_are_or_whether_it_is_compiled(folder):
    """All of that is the learner's. A3C, whose workers are no ranks, refuses them."""
    for path in sorted((PACKAGE / folder).glob("*.py")):
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"world_size|keep_empty|torch\.compile|torch\.distributed|\.compiles\b", text)
        assert found == ([".compiles", "world_size"] if path.name == "a3c.py" else []), path.name
