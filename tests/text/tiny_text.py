"""A language of three tokens, all of whose completions can be listed: means over samples are sums here."""

from itertools import product

import torch
from gymnasium import spaces
from torch import nn

from pg_lightning.algorithms import PolicyGradientModule
from pg_lightning.rollout import Batch, Rollout, Sequences
from pg_lightning.text.collector import rollout_of
from pg_lightning.text.completion import Completions
from pg_lightning.text.policy import NOTHING, LanguagePolicy

EOS, V, T = 0, 3, 3
TOKENS = spaces.Discrete(V)
PROMPT = torch.tensor([[1, 2]])
MODEL = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "context": 16}
POLICY = {"class_path": "pg_lightning.text.LanguagePolicy", "init_args": {"model": MODEL}}


def every_completion() -> list[tuple[int, ...]]:
    """The 15 of at most three tokens: an end after 0, 1 or 2 others, or three others."""
    ended = [(*before, EOS) for length in range(T) for before in product((1, 2), repeat=length)]
    return [*ended, *product((1, 2), repeat=T)]


def with_opinions(module: nn.Module, seed: int = 1, std: float = 0.4) -> nn.Module:
    """The module in float64, with weights that make some tokens likelier than others."""
    module.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def make_policy(seed: int = 1, **options) -> LanguagePolicy:
    torch.manual_seed(0)
    policy = LanguagePolicy(TOKENS, TOKENS, MODEL, **options)
    return with_opinions(policy, seed)  # type: ignore[return-value]


def completions_of(chosen: list[tuple[int, ...]], prompts: torch.Tensor | None = None, rows: int = T) -> Completions:
    tokens = torch.zeros(rows, len(chosen), dtype=torch.int64)
    valid = torch.zeros(rows, len(chosen), dtype=torch.bool)
    for n, completion in enumerate(chosen):
        tokens[: len(completion), n], valid[: len(completion), n] = torch.tensor(completion), True
    prompts = PROMPT.repeat(len(chosen), 1) if prompts is None else prompts
    ended = torch.tensor([completion[-1] == EOS for completion in chosen])
    return Completions(prompts, tokens, torch.zeros(rows, len(chosen), dtype=torch.float64), valid, ended)


def make_rollout(chosen: list[tuple[int, ...]], rewards: torch.Tensor, num_completions: int, **layout) -> Rollout:
    return rollout_of(completions_of(chosen, **layout), rewards.double(), num_completions, policy_version=0)


def batch_of(completions: Completions) -> Batch:
    valid = completions.valid
    ones = torch.ones(int(valid.sum()), dtype=torch.float64)
    obs = torch.cat([completions.prompts[:, -1][None], completions.tokens[:-1]])
    sequences = Sequences(completions.prompts[:, :-1], torch.zeros_like(valid), valid)
    return Batch(obs, completions.tokens[valid], ones, ones, ones, sequences=sequences)


def log_probs_of(policy: LanguagePolicy, chosen: list[tuple[int, ...]]) -> torch.Tensor:
    """`[S]` log π of whole completions, with gradient."""
    batch = batch_of(completions_of(chosen))
    assert batch.sequences is not None
    of_tokens = torch.zeros(batch.sequences.valid.shape, dtype=torch.float64)
    return of_tokens.masked_scatter(batch.sequences.valid, policy.policy(batch).log_prob(batch.actions)).sum(0)


def flat(value: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """The gradient of a scalar as one vector."""
    parameters = [*module.parameters()]
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


class Recorder:
    """Stands in for the learner: keeps the gradients of the losses of an update instead of taking steps."""

    def __init__(self, algorithm: PolicyGradientModule) -> None:
        self.algorithm, learner = algorithm, algorithm.learner
        learner.step = self.step  # type: ignore[method-assign]
        learner.mean_stats = lambda: self.stats  # type: ignore[method-assign]

    def step(self, loss, batch):
        self.batch = batch
        value, self.stats = loss(batch)
        self.gradients.append(flat(value, self.algorithm.network))
        return self.stats

    def of(self, rollout: Rollout) -> torch.Tensor:
        """The gradient of the update of a rollout, the mean over its steps."""
        self.gradients = []
        self.algorithm.learner.rows = [rollout.env_steps]
        self.algorithm.update(rollout)
        return torch.stack(self.gradients).mean(0)


def make_algorithm(kind: type[PolicyGradientModule], **options) -> PolicyGradientModule:
    torch.manual_seed(0)
    algorithm = kind(observation_space=TOKENS, action_space=TOKENS, policy=POLICY, **options)
    with_opinions(algorithm.network)
    if getattr(algorithm, "reference", None) is not None:
        with_opinions(algorithm.reference, seed=2)
    return algorithm


__all__ = ["EOS", "NOTHING"]
