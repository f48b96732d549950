"""Files as a stranger could leave them in the folders that `plot`, `study` and `compare` read and write."""

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

Maker = Callable[[Path], None]

HEADER = "step,val/return_mean,time/steps_per_second\n"


def _text(content: str | bytes) -> Maker:
    def make(path: Path) -> None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(8 * 2**30)


# In the place of any file.
ODD: dict[str, Maker] = {
    "empty": Path.touch,
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "gigabytes": _sparse,
    "binary": _text(bytes(range(256)) * 64),
    "utf_16": _text(HEADER.encode("utf-16")),
    "nul": _text("\0" * 5000),
    "password": lambda path: path.symlink_to("/etc/passwd"),
}

METRICS: dict[str, Maker] = {
    **ODD,
    "header": _text(HEADER),
    "no_step": _text("a,val/return_mean\n1,2\n"),
    "no_metric": _text("step,rollout/x\n1,2\n"),
    "text": _text(HEADER + "1,many,3\n"),
    "step_is_text": _text(HEADER + "x,1,3\n"),
    "step_is_missing": _text(HEADER + ",1,3\n"),
    "step_is_nan": _text(HEADER + "nan,1,3\n"),
    "step_is_inf": _text(HEADER + "inf,1,3\n"),
    "step_is_negative": _text(HEADER + "-1,1,3\n"),
    "step_is_huge": _text(HEADER + "1e300,1,3\n"),
    "steps_go_back": _text(HEADER + "10,1,3\n5,1,3\n"),
    "quote": _text(HEADER + '1,"2\n' + "x" * 200_000),
    "long_field": _text(HEADER + "1," + "9" * 200_000 + ",1\n"),
    "html": _text("<html><body>404</body></html>\n"),
    "json": _text(json.dumps({"step": [1, 2]})),
    "many_columns": _text(",".join(map(str, range(100_000))) + "\n"),
}

# Odd, but a figure can be drawn.
DRAWN: dict[str, Maker] = {
    "all_nan": _text(HEADER + "1,nan,3\n2,nan,3\n"),
    "infinite": _text(HEADER + "1,inf,3\n2,1,3\n"),
    "overflow": _text(HEADER + "1,1e308,3\n2,-1e308,3\n"),
    "one_point": _text(HEADER + "1,1,3\n"),
    "same_step": _text(HEADER + "1,1,3\n1,2,3\n"),
    "short_row": _text(HEADER + "1\n2,1,1\n3\n"),
    "more_fields": _text(HEADER + "1,2,3,4,5\n"),
    "twice_a_column": _text("step,step,val/return_mean\n1,1,2\n"),
    "many_rows": _text(HEADER + "".join(f"{i},1,3\n" for i in range(200_000))),
    "crlf": _text(HEADER.replace("\n", "\r\n") + "1,2,3\r\n"),
}

# `config.yaml` beside a good metrics.csv: an error in one line, or a figure.
CONFIGS: dict[str, Maker] = {
    **ODD,
    "list": _text("- 1\n"),
    "model_is_text": _text("model: x\n"),
    "model_is_a_list": _text("model: [1]\n"),
    "class_path_is_a_list": _text("model: {class_path: [1, 2]}\n"),
    "data_is_text": _text("data: x\n"),
    "env_is_a_list": _text("data: {env_id: [1]}\n"),
    "env_is_long": _text(f"data: {{env_id: '{'x' * 100_000}'}}\n"),
    "env_is_a_formula": _text("model: {class_path: 'a.$x$'}\ndata: {env_id: '$\\frac{1}$'}\n"),
    "env_has_escapes": _text('data: {env_id: "\\e[31mred\\a\\n"}\n'),
    "env_is_null": _text("model: null\ndata: null\n"),
    "python": _text("model: !!python/object/apply:os.system [touch CODE_RAN]\n"),
}

RESULTS: dict[str, Maker] = {
    **ODD,
    "text": _text("[]"),
    "half": _text('{"name": "a", "seed": 1'),
    "missing": _text('{"name": "a", "seed": 1}'),
    "more": _text('{"name":"a","seed":1,"env_steps":1,"final":1.0,"mean":1.0,"seconds":1.0,"x":1}'),
    "wrong_types": _text('{"name":1,"seed":"1","env_steps":[],"final":"x","mean":{},"seconds":null}'),
    "deep": _text("[" * 100_000),
    "long_number": _text('{"name":"a","seed":' + "9" * 10_000 + "}"),
}


def _other_database(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("create table studies (x int)")


STORAGES: dict[str, Maker] = {**ODD, "other": _other_database}
del STORAGES["empty"]  # becomes a database
del STORAGES["loop"]  # is nothing
