"""Prompts from every source; what is no source, or no prompt, is one line that names its place."""

import json
import os
import sys

import pytest

from pg_lightning.errors import UserError
from pg_lightning.text import Prompt, read_prompts
from pg_lightning.text.reasoning import STRIDE


def refused(source):
    with pytest.raises(UserError) as error:
        read_prompts("data.prompts", source)
    line = str(error.value)
    assert "\n" not in line
    return line


def written(tmp_path, *lines):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return str(path)


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]


def test_a_list_of_texts_and_of_mappings():
    assert read_prompts("data.prompts", ["a", {"prompt": "b"}]) == [Prompt("a", {}), Prompt("b", {})]
    (prompt,) = read_prompts("data.prompts", [{"prompt": CHAT, "answer": "4", "level": 1}])
    assert prompt == Prompt(CHAT, {"answer": "4", "level": 1})


def test_a_file_with_a_line_for_each_prompt(tmp_path):
    rows = [{"prompt": "è\n1", "answer": 1}, {"prompt": CHAT, "answer": [2]}]
    path = written(
        tmp_path, b"\xef\xbb\xbf" + json.dumps(rows[0], ensure_ascii=False).encode(), "", json.dumps(rows[1]), " "
    )
    assert read_prompts("data.prompts", path) == [Prompt("è\n1", {"answer": 1}), Prompt(CHAT, {"answer": [2]})]


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ("text_rewards.PROMPTS", ["one", "two"]),
        ("text_rewards.some", ["p0", "p1", "p2"]),
        ({"class_path": "text_rewards.some", "init_args": {"count": 1, "say": "q"}}, ["q0"]),
        ("text_rewards.Source", ["from 0", "from 1"]),
        ({"class_path": "text_rewards.Source", "init_args": {"count": 1}}, ["from 0"]),
        ({"class_path": "text_rewards.Source", "init_args": None}, ["from 0", "from 1"]),
    ],
)
def test_the_path_of_a_function_or_an_iterable(source, texts):
    assert [prompt.text for prompt in read_prompts("data.prompts", source)] == texts


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (['{"prompt": "a"}', '{"prompt": }'], "line 2 is not JSON: Expecting value at column 12"),
        (['{"prompt": "a"}', "", "[1]"], "line 3 is no object but a list; each line is one object, as"),
        (['"a"'], "line 1 is no object but a string; "),
        (
            ['{"promt": "a", "x": 1}'],
            "line 1 has no key prompt, which is the text to continue; its keys are 'promt', 'x'",
        ),
        (["{}"], "line 1 has no key prompt, which is the text to continue; its keys are none"),
        (['{"prompt": 7}'], "line 1: prompt must be a string or the messages of a chat, not a number"),
        (['{"prompt": null}'], "line 1: prompt must be a string or the messages of a chat, not null"),
        (['{"prompt": []}'], "line 1: prompt must be a string or the messages of a chat, not an empty list"),
        (
            ['{"prompt": ["a"]}'],
            "line 1: prompt must be a string or messages, each {role: user, content: …} of strings",
        ),
        (['{"prompt": [{"role": "user"}]}'], "line 1: prompt must be a string or messages, each {role: user, content"),
        (['{"prompt": [{"role": "user", "content": 1}]}'], "line 1: prompt must be a string or messages, each {role"),
        (['{"prompt": ""}'], "line 1 has an empty prompt; a policy continues at least one character"),
        (['{"prompt": "a", "completions": []}'], "line 1 has a column completions, which reward functions know as"),
        (
            ['{"prompt": "a", "answer": 1, "b": 1}', '{"prompt": "a"}'],
            "line 2 lacks the column 'answer', 'b'; the columns of all prompts must be those of",
        ),
        (['{"prompt": "a"}', '{"prompt": "a", "c": 1}'], "line 2 has the additional column 'c'; the columns of all"),
        (['{"prompt": "ab\\ud800"}'], "line 1: prompt has half of a surrogate pair, no character, at 3"),
        ([b'{"prompt": "\xff"}'], "line 1 is not text in UTF-8"),
        (["[" * 100_000], "line 1 is not JSON that can be read: RecursionError"),
        (['{"prompt": "a", "n": 1' + "0" * 5000 + "}"], "line 1 is not JSON that can be read: ValueError"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, lines, error):
    path = written(tmp_path, *lines)
    assert refused(path).startswith(f"data.prompts: {path!r} {error}")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ([], "data.prompts: the list has no prompts; at least one is needed"),
        (None, "data.prompts: no source of prompts: 'None'; give a list of prompts, the path of"),
        (["a", 12], "data.prompts: prompt 2 is a number; give a string in quotes, or a mapping with the key prompt"),
        (["a", ["b"]], "data.prompts: prompt 2 is a list; give a string, or a mapping with the key prompt"),
        (["a", {"answer": "b"}], "data.prompts: prompt 2 has no key prompt, which is the text to continue; its keys"),
        ([{"prompt": "a", 1: 2}], "data.prompts: prompt 1 has a column whose name is no string"),
        (
            "",
            "data.prompts: no source of prompts: ''; give a list of prompts, the path of a .jsonl file, reasoning_gym:",
        ),
        (
            "prompts",
            "data.prompts: no source of prompts: 'prompts'; give a list of prompts, the path of a .jsonl file,",
        ),
        ({"prompt": "a"}, "data.prompts: unknown key prompt; a single prompt is a list of one: [{prompt: …}]"),
        ({"class_path": "a.b", "args": 1}, "data.prompts: unknown key args; give a list of prompts, the path of a"),
        ({"class_path": 7}, "data.prompts: no source of prompts: '7'; give"),
        ({"class_path": "text_rewards.some", "init_args": 3}, "data.prompts.init_args: must be a mapping of arguments"),
        ("no_module.some", "data.prompts: cannot import 'no_module.some': No module named 'no_module'"),
        (
            "text_rewards.none",
            "data.prompts: cannot import 'text_rewards.none': module 'text_rewards' has no attribute",
        ),
        ("text_rewards.NUMBER", "data.prompts: text_rewards.NUMBER gave int, not a list of strings or mappings with"),
        ("text_rewards.fails", "data.prompts: text_rewards.fails raised RuntimeError: no source ("),
        ("text_rewards.breaks", "data.prompts: text_rewards.breaks raised KeyError: 'second' ("),
        ({"class_path": "text_rewards.PROMPTS", "init_args": {"a": 1}}, "data.prompts.init_args: text_rewards.PROMPTS"),
        (
            {"class_path": "text_rewards.some", "init_args": {"cuont": 1}},
            "data.prompts: init_args: text_rewards.some has no parameter 'cuont'; it has count, say",
        ),
        (
            {"class_path": "text_rewards.some", "init_args": {"count": "x"}},
            "data.prompts: text_rewards.some raised TypeError: 'str' object cannot be interpreted as an integer (",
        ),
        (
            {"class_path": "text_rewards.some", "init_args": {"count": 0}},
            "data.prompts: 'text_rewards.some' has no prompts; at least one is needed",
        ),
    ],
)
def test_what_is_no_source(source, error):
    assert refused(source).startswith(error)


def test_what_is_no_file_of_prompts(tmp_path):
    path = str(tmp_path / "none.jsonl")
    assert refused(path) == f"data.prompts: cannot read {path!r}: No such file or directory"
    assert refused(written(tmp_path, "", " ")).endswith("has no prompts; at least one is needed")
    (tmp_path / "folder.jsonl").mkdir()
    assert refused(str(tmp_path / "folder.jsonl")).endswith("Is a directory")
    os.mkfifo(tmp_path / "fifo.jsonl")
    assert refused(str(tmp_path / "fifo.jsonl")).endswith("is not a regular file")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    assert refused(str(tmp_path / "zero.jsonl")).endswith("is not a regular file")
    (tmp_path / "prompts.txt").write_text("a")
    path = str(tmp_path / "prompts.txt")
    assert refused(path).startswith(f"data.prompts: {path!r} is a file whose name does not end in .jsonl; give")


def test_an_iterable_that_does_not_end_is_refused(monkeypatch):
    monkeypatch.setattr("pg_lightning.text.prompts.MAX_PROMPTS", 10)
    assert refused("text_rewards.endless").endswith("endless gives more than 10 prompts; end it before")


def test_a_long_prompt_is_shortened_in_messages():
    said = Prompt("word " * 50 + "\nlast").shortened()
    assert len(said) < 70
    assert said.startswith("'word word")
    assert said.endswith("word last'")
    assert Prompt(CHAT).shortened() == "'2+2?'"


def test_a_missing_reasoning_gym_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    line = refused("reasoning_gym:basic_arithmetic")
    assert line.endswith('is not installed; pip install "pg_lightning[reasoning-gym]"')


def task(name="basic_arithmetic", **arguments):
    return {"class_path": f"reasoning_gym:{name}", "init_args": arguments}


def test_a_task_of_reasoning_gym():
    gym = pytest.importorskip("reasoning_gym")
    assert len(read_prompts("data.prompts", "reasoning_gym:basic_arithmetic")) == 500
    prompts = read_prompts("data.prompts", task(size=5, seed=3, max_terms=2))
    items = list(gym.create_dataset("basic_arithmetic", size=5, seed=3 * STRIDE, max_terms=2))
    assert [prompt.text for prompt in prompts] == [item["question"] for item in items]
    assert [prompt.fields["answer"] for prompt in prompts] == [item["answer"] for item in items]
    json.dumps([prompt.fields for prompt in prompts])


def test_seeds_of_a_task_share_no_prompts():
    """reasoning-gym draws item i from seed + i, so its seeds 1 and 2 share all items but one."""
    pytest.importorskip("reasoning_gym")
    first, second, again = (
        {prompt.text for prompt in read_prompts("data.prompts", task(size=100, seed=seed))} for seed in (0, 1, 0)
    )
    assert first == again
    assert not first & second


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (task("basic_aritmetic"), "data.prompts: reasoning_gym has no task 'basic_aritmetic'; did you mean basic_arit"),
        (task("zzzz"), "data.prompts: reasoning_gym has no task 'zzzz'; there are "),
        (
            "reasoning_gym:leg_counting?size=5",
            "data.prompts: reasoning_gym has no task 'leg_counting?size=5' (arguments belong in init_args, ",
        ),
        (task(sizes=5), "data.prompts.init_args: basic_arithmetic has no option 'sizes'; it has min_terms, max_terms,"),
        (task(size=0), "data.prompts.init_args.size: must be an integer between 1 and 1,048,576, got 0"),
        (task(seed=-1), "data.prompts.init_args.seed: must be an integer between 0 and 2,000, got -1"),
        (task(seed="x"), "data.prompts.init_args.seed: must be an integer between 0 and 2,000, got 'x'"),
        (task(min_terms=7), "data.prompts.init_args: basic_arithmetic refuses its arguments: max_terms must be >= min"),
    ],
)
def test_what_is_no_task_of_reasoning_gym(source, error):
    pytest.importorskip("reasoning_gym")
    assert refused(source).startswith(error)
