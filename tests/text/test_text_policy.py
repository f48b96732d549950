"""A language model as a policy: what the sampler draws is what the update believes, whatever the layout of a batch."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from gymnasium import spaces
from scipy import stats
from tiny_text import (
    EOS,
    MODEL,
    NOTHING,
    PROMPT,
    TOKENS,
    Recorder,
    T,
    batch_of,
    completions_of,
    every_completion,
    flat,
    log_probs_of,
    make_algorithm,
    make_policy,
    make_rollout,
)
from torch import nn

from pg_lightning.algorithms import GRPO, PPO, RLOO
from pg_lightning.errors import UserError
from pg_lightning.policies import Policy
from pg_lightning.text.completion import complete
from pg_lightning.text.models import make_model
from pg_lightning.text.policy import LanguagePolicy

ALL = every_completion()
PROMPTS = torch.tensor([[1, 2, 1, 2], [NOTHING, NOTHING, 2, 2], [NOTHING, NOTHING, NOTHING, 1]])


def ends(tokens, columns):
    return tokens[-1] == EOS


def drawn(policy, prompts=PROMPTS, num_completions=4, tokens=8, seed=1):
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        return complete(policy, prompts, num_completions, tokens, ends, generator)


def test_it_is_a_policy():
    assert isinstance(make_policy(), Policy)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_ratio_is_one_before_the_first_step(temperature):
    """trl #5814, NeMo-RL #2269: also of whole completions, which leave the batch when they end."""
    policy = make_policy(temperature=temperature).float()
    completions = drawn(policy, num_completions=20)
    assert 0 < completions.ended.sum() < len(completions.ended)
    batch = batch_of(completions)
    found = torch.zeros_like(completions.log_probs)
    found[completions.valid] = policy.policy(batch).log_prob(batch.actions).detach()
    assert (found - completions.log_probs).abs().max() < 1e-5
    assert (found.sum(0) - completions.log_probs.sum(0)).abs().max() < 1e-5


def test_the_ratio_is_nearly_one_in_half_precision():
    """A bound, not an equality: bfloat16 has 8 bits, and the shapes of the two passes differ."""
    policy = make_policy().float()
    with torch.autocast("cpu", torch.bfloat16):
        completions = drawn(policy, num_completions=20)
        batch = batch_of(completions)
        found = policy.policy(batch).log_prob(batch.actions)
    assert found.dtype == torch.float32
    assert (found - completions.log_probs[completions.valid]).abs().max() < 0.1


def test_completions_are_drawn_from_the_policy():
    """Of a prompt that is read once, by completions that leave the batch at different times."""
    policy = make_policy()
    p = log_probs_of(policy, ALL).exp().detach()
    completions = drawn(policy, PROMPT, 4000, T)
    texts = Counter(
        tuple(column[ok].tolist()) for column, ok in zip(completions.tokens.T, completions.valid.T, strict=True)
    )
    assert set(texts) <= set(ALL)
    observed = [texts[completion] for completion in ALL]
    assert stats.chisquare(observed, (4000 * p / p.sum()).numpy()).pvalue > 1e-4


def test_the_temperature_is_part_of_the_policy():
    """trl #6789: a distribution that is changed when sampling only, and a ratio that does not know it."""
    hot, cold = make_policy(temperature=1.0), make_policy(temperature=0.5)
    first = batch_of(completions_of([(EOS,), (1, EOS), (2, EOS)]))
    at_one, at_half = (policy.policy(first).logits for policy in (hot, cold))
    assert torch.allclose(2 * at_one, at_half, atol=1e-6)


@pytest.mark.parametrize("algorithm", [RLOO, GRPO])
def test_padding_changes_nothing(algorithm):
    """Neither to the left of prompts, nor rows after the last end."""
    rewards = torch.tensor([1.0, 0.0, 0.5, 2.0])
    chosen = [(EOS,), (1, EOS), (2, 1, EOS), (2, 2, EOS)]
    options = {"normalizer": "tokens"} if algorithm is GRPO else {}
    recorder = Recorder(make_algorithm(algorithm, **options))
    plain = recorder.of(make_rollout(chosen, rewards, 2))
    prompts = torch.cat([torch.full((4, 3), NOTHING), PROMPT.repeat(4, 1)], 1)
    for layout in ({"prompts": prompts}, {"rows": 7}):
        assert torch.allclose(recorder.of(make_rollout(chosen, rewards, 2, **layout)), plain, atol=1e-6)
    other = PROMPT.flip(1).repeat(4, 1)
    assert not torch.allclose(recorder.of(make_rollout(chosen, rewards, 2, prompts=other)), plain, atol=1e-3)


def test_a_prompt_does_not_depend_on_its_neighbours():
    policy = make_policy()
    batch = batch_of(completions_of([(1, 2, EOS)], PROMPTS[2:]))
    alone = policy.policy(batch).logits
    together = policy.policy(batch_of(completions_of([(1, 2, EOS)] * 3, PROMPTS))).logits.view(3, 3, -1)[:, 2]
    assert torch.allclose(alone, together, atol=1e-6)


@pytest.mark.parametrize("normalizer", ["sequence", "tokens", "constant"])
def test_the_split_into_micro_batches_changes_nothing(normalizer):
    """trl #3021, #6369: normalisers of a part instead of the whole."""
    algorithm = make_algorithm(GRPO, normalizer=normalizer, kl_coef=0.1)
    recorder = Recorder(algorithm)
    rollout = make_rollout(ALL[:8], torch.arange(8) % 3, 4)
    whole = recorder.of(rollout)
    batch, total = recorder.batch, torch.zeros(())
    parts = [*batch.parts(6)]
    assert len({len(part) for part in parts}) > 1
    for part in parts:
        total = total + len(part) / len(batch) * flat(algorithm.loss(part)[0], algorithm.network)
    assert torch.allclose(total, whole, atol=1e-6)


def test_the_end_of_a_completion_is_learned():
    """trl #4970: EOS that is also PAD has no gradient if the mask comes from the tokens."""
    policy = make_policy()
    batch = batch_of(completions_of([(1, EOS)]))
    assert batch.actions.tolist() == [1, EOS]
    log_probs = policy.policy(batch).log_prob(batch.actions)
    assert flat(log_probs[1], policy).norm() > 1e-3


def test_rows_after_the_end_have_no_say():
    """MemGen #33, and a token that would be drawn after the end."""
    completions = completions_of([(1, EOS), (2, 1, 2)])
    other = replace(completions, tokens=torch.where(completions.valid, completions.tokens, 2))
    policy = make_policy()
    first, second = (policy.policy(batch_of(x)).logits for x in (completions, other))
    assert torch.equal(first, second)


def test_dropout_is_off_in_training():
    policy = make_policy()
    gpt2 = pytest.importorskip("transformers").GPT2LMHeadModel(
        pytest.importorskip("transformers").GPT2Config(vocab_size=3, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    )
    assert any(module.p for module in gpt2.modules() if isinstance(module, nn.Dropout))
    from pg_lightning.text.models import without_dropout

    policy.model = without_dropout(gpt2)
    policy.train()
    batch = batch_of(completions_of([(1, 2, EOS)]))
    assert torch.equal(policy.policy(batch).logits, policy.policy(batch).logits)


def test_tokens_that_the_tokenizer_does_not_have_are_never_drawn():
    policy = LanguagePolicy(TOKENS, TOKENS, MODEL)
    policy.model = make_model(MODEL, 5)
    with torch.no_grad():
        policy.model.lm_head.weight[3:] = 100.0
    assert policy.policy(batch_of(completions_of([(1, EOS)]))).logits.shape[-1] == 3


def test_acting_step_by_step_equals_a_pass_over_the_whole():
    policy = make_policy()
    completion = (1, 2, EOS)
    whole = policy.policy(batch_of(completions_of([completion]))).logits
    state, obs = PROMPT[:, :-1], PROMPT[:, -1]
    for t, token in enumerate(completion):
        pi, state = policy.act(obs, None, state)
        assert torch.allclose(pi.logits[0], whole[t], atol=1e-6)
        obs = torch.tensor([token])


def test_algorithms_with_a_critic_refuse_a_model_without_one():
    with pytest.raises(UserError, match=r"model.policy: .* REINFORCE, RLOO or GRPO"):
        make_algorithm(PPO)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"hidden": 3}, "no size 'hidden'; sizes are hidden_size"),
        ({"hidden_size": 6, "num_heads": 4}, "hidden_size"),
        ({"num_layers": 0}, "model.policy.model.num_layers"),
        ("no/such/model", "model.policy.model: cannot read 'no/such/model'"),
    ],
)
def test_models_that_cannot_be_made(model, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message):
        LanguagePolicy(TOKENS, TOKENS, model)


def test_a_language_model_needs_prompts():
    with pytest.raises(UserError, match=r"data.prompts"):
        LanguagePolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (3,)), MODEL)  # type: ignore[arg-type]
