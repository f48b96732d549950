"""Rewards of completions: what functions are given, what they may return, and their mistakes in one line."""

import importlib.util

import pytest
import text_rewards
import torch

from pg_lightning.errors import UserError
from pg_lightning.text import Prompt, Rewards, read_prompts

PROMPTS = [
    Prompt("What is 3 + 4?", {"answer": "7", "level": 1}),
    Prompt("Name a colour.", {"answer": "Red", "level": 2}),
]
COMPLETIONS = ["7", "green"]


def rewards(reward, prompts=PROMPTS, completions=COMPLETIONS):
    return Rewards(reward)(prompts, completions)[0].tolist()


def refused(make):
    with pytest.raises(UserError) as error:
        make()
    line = str(error.value)
    assert "\n" not in line
    return line


def by(path, **keys):
    return {"class_path": path, **keys}


def test_a_function_gets_the_columns_that_its_signature_names():
    assert rewards("text_rewards.length") == [1, 5]
    assert rewards(by("text_rewards.scaled", init_args={"factor": 0.5})) == [0.5, 2.5]
    assert rewards("text_rewards.everything") == [1, 1]
    texts = [prompt.text for prompt in PROMPTS]
    assert {
        "prompts": texts,
        "completions": COMPLETIONS,
        "answer": ["7", "Red"],
        "level": [1, 2],
    } == text_rewards.SEEN


def test_arguments_of_the_config_come_before_a_column_of_their_name():
    prompts = [Prompt("a", {"answer": "x", "factor": 100.0})]
    with pytest.raises(UserError, match="scaled returned list among"):
        rewards("text_rewards.scaled", prompts, ["ab"])
    assert rewards(by("text_rewards.scaled", init_args={"factor": 2.0}), prompts, ["ab"]) == [4]


@pytest.mark.parametrize(
    ("path", "values"),
    [("by_numpy", [0, 1]), ("by_tensor", [0, 1]), ("by_flags", [0, 1]), ("length", [1, 5])],
)
def test_numbers_are_lists_arrays_or_tensors(path, values):
    total, parts = Rewards(f"text_rewards.{path}")(PROMPTS, COMPLETIONS)
    assert total.dtype == parts[path].dtype == torch.float32
    assert total.tolist() == values
    assert not total.requires_grad


def test_the_reward_is_the_weighted_sum_and_parts_have_no_weights():
    made = Rewards(
        [
            "exact_match",
            by("text_rewards.length", weight=-0.5, name="brevity"),
            by("text_rewards.Above", init_args={"least": 2}, weight=2),
        ]
    )
    assert made.names == ["exact_match", "brevity", "Above"]
    total, parts = made(PROMPTS, COMPLETIONS)
    assert {name: part.tolist() for name, part in parts.items()} == {
        "exact_match": [1, 0],
        "brevity": [1, 5],
        "Above": [0, 1],
    }
    assert total.tolist() == [0.5, -0.5]


def test_no_completions_have_no_rewards():
    total, parts = Rewards("exact_match")([], [])
    assert total.shape == parts["exact_match"].shape == (0,)


@pytest.mark.parametrize(
    ("reward", "answer", "completion", "value"),
    [
        ("exact_match", "7", " 7\n", 1),
        ("exact_match", 7, "7", 1),
        ("exact_match", "7", "7.", 0),
        ("exact_match", "Red", "red", 0),
        (by("exact_match", init_args={"ignore_case": True}), "Red", "red", 1),
        ("contains", "7", "It is 7.", 1),
        ("contains", "7", "It is 8.", 0),
        ("last_number", "1,200", "3 times 400 is 1200.0.", 1),
        ("last_number", "#### -5", "5", 0),
        ("last_number", "7", "7 or 8", 0),
        ("last_number", "7", "seven", 0),
        ("last_number", "none", "none", 0),
        ("torchmetrics.text.CharErrorRate", "abcd", "abxd", 0.25),
    ],
)
def test_functions_with_short_names_and_metrics(reward, answer, completion, value):
    """A metric is of each completion alone: the one before leaves no trace."""
    prompts = [Prompt("a", {"answer": "zz"}), Prompt("a", {"answer": answer})]
    assert rewards(reward, prompts, ["zz", completion])[1] == value


ABOUT_GREEN = " for the prompt 'Name a colour.' and the completion 'green'"
SHORT = "exact_match, contains, last_number, reasoning_gym, brackets"


@pytest.mark.parametrize(
    ("reward", "error"),
    [
        ([], f"data.reward: give {SHORT}, or the class path module.name of a function"),
        (None, f"data.reward: 'None' is no function; give {SHORT}, or the class path module.name of a function"),
        ([3], "data.reward: '3' is no function; give exact_match, "),
        ("exact_mach", "data.reward: no function 'exact_mach'; did you mean exact_match?"),
        ("zzz", "data.reward: no function 'zzz'; give exact_match, "),
        ("bad_syntax.reward", "data.reward: bad_syntax.reward raised SyntaxError: "),
        ("text_rewards.none", "data.reward: cannot import 'text_rewards.none': module 'text_rewards' has no attribute"),
        ("text_rewards.NUMBER", "data.reward: text_rewards.NUMBER is no function but int"),
        ("text_rewards.NotCallable", "data.reward: text_rewards.NotCallable has no method __call__, which a reward"),
        ({"weight": 1}, f"data.reward: class_path is missing; give {SHORT}, or"),
        (
            by("exact_match", wieght=1),
            "data.reward: unknown key 'wieght'; it has class_path, init_args, name, weight",
        ),
        (
            by("exact_match", weight=float("inf")),
            "data.reward: weight: must be a finite number, got inf for exact_match",
        ),
        (by("exact_match", weight="1"), "data.reward: weight: must be a finite number, got '1' for exact_match"),
        (by("exact_match", name="a/b"), "data.reward: name: 'a/b' is part of a metric's name; use letters, digits, _,"),
        (by("exact_match", init_args=[1]), "data.reward: init_args: must be a mapping of arguments, got '[1]'"),
        (
            by("exact_match", init_args={"ignore": True}),
            "data.reward: init_args: exact_match has no parameter 'ignore'; it has completions, answer, ignore_case",
        ),
        (
            by("text_rewards.Above", init_args={"most": 1}),
            "data.reward: init_args: text_rewards.Above has no parameter 'most'; it has least",
        ),
        (
            by("text_rewards.Above", init_args={"least": -1}),
            "data.reward: text_rewards.Above raised ValueError: least < 0 (",
        ),
        ("text_rewards.Above", "data.reward: text_rewards.Above raised TypeError: "),
        (
            ["exact_match", by("exact_match", weight=2)],
            "data.reward: two functions have the name 'exact_match'; give one a name of its own, {class_path, name}",
        ),
    ],
)
def test_what_is_no_reward_is_refused_before_training(tmp_path, monkeypatch, reward, error):
    (tmp_path / "bad_syntax.py").write_text("def reward(completions)\n    return [0]\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert refused(lambda: Rewards(reward)).startswith(error)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("nan_for_long", f"data.reward: nan_for_long returned nan{ABOUT_GREEN}; return a finite number"),
        (
            "huge",
            "data.reward: huge returned inf for the prompt 'What is 3 + 4?' and the completion '7'; return a finite",
        ),
        ("too_few", "data.reward: too_few returned 1 values for 2 completions; return one for each"),
        ("one_number", "data.reward: one_number returned float; return a number for each of 2 completions"),
        ("nothing", "data.reward: nothing returned NoneType; return a number for each of 2 completions"),
        ("column_vector", "data.reward: column_vector returned list among its values; return a number for each compl"),
        ("none_for_some", "data.reward: none_for_some returned NoneType among its values; return a number for each"),
        ("texts", "data.reward: texts returned str '1.0' among its values; return a number for each completion"),
        ("exits", "data.reward: exits called sys.exit(3) ("),
    ],
)
def test_what_a_function_may_not_return(path, error):
    assert refused(lambda: rewards(f"text_rewards.{path}")).startswith(error)


def test_an_asynchronous_function_is_refused():
    line = refused(lambda: rewards("text_rewards.later"))
    assert line == "data.reward: later returned coroutine; return a number for each of 2 completions"


def test_a_function_that_raises_is_named_with_its_line_and_the_prompt():
    line = refused(lambda: rewards("text_rewards.divides", completions=["7", ""]))
    assert line.startswith("data.reward: divides raised ZeroDivisionError: division by zero (")
    assert "text_rewards.py:" in line
    assert line.endswith(") for the prompt 'Name a colour.' and the completion ''")
    line = refused(lambda: rewards("text_rewards.only_together"))
    assert line.endswith(") for 2 completions together, and for none of them alone")


def test_a_sum_that_overflows_names_the_prompt():
    reward = by("text_rewards.length", weight=1e38)
    assert refused(lambda: rewards(reward)) == f"data.reward: the weighted sum is inf{ABOUT_GREEN}"


def test_a_missing_column_is_named_before_anything_is_generated():
    line = "data.reward: exact_match needs the column 'answer', which the prompts (data.prompts) lack; "
    for call in (lambda m, p: m.require_columns(p), lambda m, p: m(p, ["a"])):
        assert refused(lambda call=call: call(Rewards("exact_match"), [Prompt("a", {"solution": "7"})])) == (
            line + "their columns are solution"
        )
        assert refused(lambda call=call: call(Rewards("exact_match"), [Prompt("a")])) == (
            line + "they have no columns beside prompt"
        )
    Rewards(["exact_match", "text_rewards.everything"]).require_columns(PROMPTS)
    reward = "torchmetrics.text.CharErrorRate"
    assert "CharErrorRate needs the column 'answer'" in refused(lambda: Rewards(reward).require_columns([Prompt("a")]))


@pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="needs reasoning-gym")
def test_the_task_of_reasoning_gym_scores_its_answers():
    source = {"class_path": "reasoning_gym:puzzle24", "init_args": {"size": 3, "max_value": 6}}
    prompts = read_prompts("data.prompts", source)
    answers = [str(prompt.fields["answer"]) for prompt in prompts]
    assert rewards("reasoning_gym", prompts, answers) == [1, 1, 1]
    tagged = [f"<think>1+1</think> <answer> {answer} </answer>." for answer in answers]
    assert rewards("reasoning_gym", prompts, tagged) == [1, 1, 1]
    wrong = rewards("reasoning_gym", prompts, ["1 + 1", "((", ""])
    assert max(wrong) < 0.1
    numbers_that_are_too_large = rewards("reasoning_gym", prompts, ["8 * 3 * 1 * 1"] * 3)
    assert max(numbers_that_are_too_large) < 0.1


@pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="needs reasoning-gym")
def test_an_answer_that_the_task_cannot_parse_scores_0():
    """The code of this task raises `ValueError` for it."""
    prompts = read_prompts(
        "data.prompts", {"class_path": "reasoning_gym:prime_factorization", "init_args": {"size": 1}}
    )
    assert rewards("reasoning_gym", prompts, ["two times three"]) == [0]


@pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="needs reasoning-gym")
def test_columns_of_reasoning_gym_are_needed():
    line = refused(lambda: rewards("reasoning_gym"))
    assert line.startswith(
        "data.reward: reasoning_gym needs the column 'question', which the prompts (data.prompts) lack"
    )
