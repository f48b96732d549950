"""Completions as texts: where they end, what is rewarded, and how prompts become tokens."""

import pytest
import torch
from gymnasium import spaces
from torch import nn

from pg_lightning.errors import UserError
from pg_lightning.text import LanguagePolicy, Prompt, Rewards
from pg_lightning.text.collector import CompletionCollector, CompletionEvaluation, Texts
from pg_lightning.text.policy import NOTHING
from pg_lightning.text.tokenizer import aligned, encode, make_tokenizer

pytest.importorskip("transformers")

TOKENIZER = make_tokenizer({"characters": "abc|"})
TOKENS = spaces.Discrete(len(TOKENIZER))
MODEL = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "context": 64}


def length(completions):
    """A reward: characters of the completion."""
    return [float(len(text)) for text in completions]


class Actor:
    """A policy that acts without a module."""

    device = torch.device("cpu")
    policy_version = 0

    def __init__(self):
        torch.manual_seed(1)
        self.policy = LanguagePolicy(TOKENS, TOKENS, MODEL)
        for parameter in self.policy.parameters():
            nn.init.normal_(parameter, std=0.3)

    def acting(self):
        return torch.inference_mode()


def texts_of(*prompts, stop=(), tokens=12):
    known = [Prompt(prompt) for prompt in prompts]
    reward = {"class_path": f"{__name__}.length"}
    return Texts(TOKENIZER, known, encode(TOKENIZER, known, 40, "data.prompts"), Rewards(reward), tokens, stop)


def test_a_stop_string_ends_a_completion_and_is_not_part_of_its_text():
    texts, actor = texts_of("a|", stop=["bc", "|"]), Actor()
    completions = texts.complete(actor, [0], 200, torch.Generator().manual_seed(1))
    raw = TOKENIZER.batch_decode(
        [column[ok].tolist() for column, ok in zip(completions.tokens.T, completions.valid.T, strict=True)]
    )
    stopped = 0
    for n, (text, whole) in enumerate(zip(texts.texts(completions), raw, strict=True)):
        assert "bc" not in text
        assert "|" not in text
        if whole.endswith(("bc", "|")):
            stopped += 1
            assert completions.ended[n]
            assert whole.startswith(text)
            assert not any(stop in whole[:-1] for stop in ("bc", "|"))  # it ended at once
        elif not whole.endswith(TOKENIZER.eos_token):
            assert not completions.ended[n]
            assert completions.valid[:, n].all()
    assert stopped > 20


def test_the_reward_is_at_the_last_token_and_is_that_of_the_text():
    texts = texts_of("a|", "bb|", "c|")
    rollout = CompletionCollector(texts, 2, 3, seed=1, rank=0, world_size=1).collect(Actor())
    for n in range(6):
        ends = rollout.valid[:, n].nonzero().max().item()
        assert rollout.rewards[:, n].nonzero().flatten().tolist() in ([ends], [])
        assert rollout.rewards[:, n].sum() == rollout.episode_returns[n]
        assert rollout.done[:, n].nonzero().flatten().tolist() == [ends]
    ended = rollout.actions[rollout.terminated]
    assert (ended == TOKENIZER.eos_token_id).all()
    assert rollout.groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(rollout.obs[1:][rollout.valid], rollout.actions[rollout.valid])
    assert rollout.measures["truncated"].mean() == rollout.truncated.any(0).float().mean()


def test_ranks_share_the_prompts_of_one_order():
    texts = texts_of(*(f"{'a' * (i + 1)}|" for i in range(8)))
    actor = Actor()
    alone = CompletionCollector(texts, 4, 1, seed=1, rank=0, world_size=1)
    ranks = [CompletionCollector(texts, 2, 1, seed=1, rank=r, world_size=2) for r in range(2)]

    def prompts(rollout):
        return [int((column != NOTHING).sum()) for column in rollout.state]

    for _ in range(3):
        assert prompts(alone.collect(actor)) == [n for rank in ranks for n in prompts(rank.collect(actor))]


def test_an_evaluation_does_not_depend_on_its_batches():
    """With the most likely tokens."""
    texts = texts_of("a", "bbbb", "cc|", "abc", "|")
    actor = Actor()
    one, all_together = (
        [episode.columns["completion"] for episode in CompletionEvaluation(texts, range(5), actor, size, None)]
        for size in (1, 5)
    )
    assert one == all_together
    assert len(set(one)) > 1


def test_chats_take_the_form_of_the_tokenizers_template():
    tokenizer = make_tokenizer({"characters": "abc|"})
    chat = Prompt([{"role": "user", "content": "ab"}])
    with pytest.raises(UserError, match=r"data.prompts: prompt 1 \('ab'\) is a chat"):
        encode(tokenizer, [chat], 40, "data.prompts")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}|{% endfor %}{% if add_generation_prompt %}c{% endif %}"
    )
    (tokens,) = encode(tokenizer, [chat], 40, "data.prompts")
    assert tokenizer.decode(tokens) == "ab|c"


def test_prompts_are_aligned_at_their_ends():
    rows = aligned([torch.tensor([1, 2, 3]), torch.tensor([4])])
    assert rows.tolist() == [[1, 2, 3], [NOTHING, NOTHING, 4]]
