"""What saves memory with a large model, and changes nothing but rounding."""

import numpy as np
import pytest
import torch
from rollouts import fit, weights_of
from tiny_text import PROMPT, every_completion, flat, log_probs_of, make_algorithm, make_policy, make_rollout

from pg_lightning.algorithms import GRPO, REINFORCE, RLOO
from pg_lightning.learning import gradient
from pg_lightning.text.completion import complete

pytest.importorskip("transformers")

ALL = every_completion()
OPTIONS = {
    REINFORCE: {"baseline": "group_mean", "gamma": 1.0},
    RLOO: {"kl_coef": 0.2},
    GRPO: {"kl_coef": 0.2, "num_epochs": 2, "ent_coef": 0.1},
}


def rollout(seed):
    generator = torch.Generator().manual_seed(seed)
    chosen = [ALL[i] for i in torch.randint(len(ALL), (12,), generator=generator).tolist()]
    made = make_rollout(chosen, torch.randn(12, generator=generator), 3)
    made.policy_version = seed
    return made


def after_three_updates(kind, **options):
    """The weights, after three updates by a Trainer."""
    algorithm = make_algorithm(kind, lr=0.01, total_steps=10**4, **OPTIONS[kind], **options)
    fit(algorithm, *map(rollout, range(3)))
    return algorithm, weights_of(algorithm)


def assert_same(one, other):
    for key, value in one.items():
        np.testing.assert_allclose(other[key], value, rtol=0, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("size", [1, 7])
def test_micro_batches_of_tokens_change_nothing(kind, size, monkeypatch):
    _, whole = after_three_updates(kind)
    sizes, loss = [], kind.loss
    monkeypatch.setattr(kind, "loss", lambda self, batch: sizes.append(len(batch)) or loss(self, batch))
    _, split = after_three_updates(kind, micro_batch_size=size)
    assert max(sizes) <= max(size, 3)  # a completion is not split
    assert_same(whole, split)


def test_a_large_model_has_gradients_of_its_own_and_learns_the_same(monkeypatch):
    small, expected = after_three_updates(GRPO)
    monkeypatch.setattr(gradient, "LARGE", 10)
    large, found = after_three_updates(GRPO)
    assert isinstance(small.learner.gradient, gradient.FlatGradient)
    assert isinstance(large.learner.gradient, gradient.PerParameterGradient)
    assert_same(expected, found)


def test_checkpointing_of_activations_changes_no_gradient():
    plain, saving = (make_policy(gradient_checkpointing=x) for x in (False, True))
    passes = []
    for policy in (plain, saving):
        policy.train()
        layer = policy.model.model.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_, policy=policy: passes.append(policy))
    one, other = (flat(log_probs_of(policy, ALL).sum(), policy) for policy in (plain, saving))
    assert passes.count(saving) == 2 * passes.count(plain)
    assert torch.equal(one, other)


def test_checkpointing_of_activations_leaves_completions_as_they_are():
    def never(tokens, columns):
        return torch.zeros(len(columns), dtype=torch.bool)

    found = []
    for policy in (make_policy(gradient_checkpointing=x) for x in (False, True)):
        policy.train()
        with torch.no_grad(), policy.acting():
            found.append(complete(policy, PROMPT, 6, 5, never, torch.Generator().manual_seed(1)))
        assert policy.model.training
    assert torch.equal(found[0].log_probs, found[1].log_probs)
