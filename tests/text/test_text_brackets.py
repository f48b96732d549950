"""The task of brackets: its grammar, its right and wrong completions, and its reward."""

import itertools

import pytest

from pg_lightning.text import Rewards, brackets, read_prompts

CLOSING = ")]}"


def is_balanced(word):
    """By deleting adjacent pairs, unlike the stack of the module."""
    while any(pair in word for pair in ("()", "[]", "{}")):
        for pair in ("()", "[]", "{}"):
            word = word.replace(pair, "")
    return not word


def test_prompts_are_beginnings_of_balanced_words_and_answers_end_them():
    prompts = brackets.prompts(0, 500)
    for prompt in prompts:
        answer = brackets.answer(prompt)
        assert set(prompt + answer) <= set(brackets.CHARACTERS)
        assert prompt.endswith("|")
        assert is_balanced(prompt[:-1] + answer)
        assert 2 <= len(answer) <= brackets.MAX_OPEN
        assert len(prompt) <= brackets.MAX_LENGTH + 1
        assert set(answer) <= set(CLOSING)
    assert {len(brackets.answer(prompt)) for prompt in prompts} == {2, 3, 4, 5}
    assert brackets.prompts(0, 10) == prompts[:10] != brackets.prompts(1, 10)


def test_held_out_prompts_are_never_in_the_corpus():
    corpus = {prompt for prompt, _ in brackets.corpus(0, 5000)} | set(brackets.prompts(1, 5000))
    held_out = set(brackets.prompts(0, 500, held_out=True))
    assert not held_out & corpus
    assert len(held_out) > 200


def test_the_reward_is_1_exactly_for_balanced_words():
    """All completions of up to 4 characters of a few prompts."""
    for prompt in ("((|", "[{}(|", "([]{|"):
        completions = ["".join(word) for n in range(5) for word in itertools.product("()[]{}", repeat=n)]
        rewards = brackets.reward([prompt] * len(completions), completions)
        balanced = [is_balanced(prompt[:-1] + completion) for completion in completions]
        assert [reward == 1.0 for reward in rewards] == balanced
        assert sum(balanced) > 1
        assert all(0 <= reward <= 0.5 for reward in rewards if reward != 1.0)


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        *[("}])", 1), ("}(){}])", 1), ("", 0), (")", 0), ("}", 1 / 6), ("}]", 1 / 3), ("}]]", 1 / 3), ("}])(", 0.5)],
        *[("}])|", 0.5), ("}|", 1 / 6), ("(((", 0), ("}[", 1 / 6), ("} ", 1 / 6)],
    ],
)
def test_a_part_of_an_answer_has_a_part_of_the_reward(completion, reward):
    assert brackets.reward(["([{|"], [completion]) == [pytest.approx(reward)]


@pytest.mark.parametrize("right", [0.0, 0.4, 1.0])
def test_the_corpus_is_right_as_often_as_asked(right):
    prompts, completions = zip(*brackets.corpus(0, 4000, right), strict=True)
    rewards = brackets.reward(prompts, completions)
    by_chance = 0.05  # two brackets of three kinds are closed by chance in 1 of 9, five in 1 of 243
    assert sum(reward == 1 for reward in rewards) / 4000 == pytest.approx(right + (1 - right) * by_chance, abs=0.025)
    assert len(set(prompts)) > 1500


def test_it_can_be_named_in_a_config():
    source = {"class_path": "pg_lightning.text.brackets.prompts", "init_args": {"seed": 1, "count": 3}}
    prompts = read_prompts("data.prompts", source)
    texts = [prompt.text for prompt in prompts]
    assert texts == brackets.prompts(1, 3)
    total, parts = Rewards("brackets")(prompts, [*map(brackets.answer, texts[:2]), "x"])
    assert total.tolist() == parts["brackets"].tolist() == [1, 1, 0]
