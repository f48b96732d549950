"""Distributions over discrete actions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pg_lightning.policies.distributions.base import at_least_float32


class Categorical:
    """One choice among n: π(a|s) = softmax(logits)_a, actions `[B]` int64, logits `[B, n]`.

    A choice whose logit is the lowest float has probability 0 and adds 0 to the entropy.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = at_least_float32(logits)
        self._log_probs: Tensor | None = None

    @property
    def log_probs(self) -> Tensor:
        """log π of every choice, `[B, n]`."""
        if self._log_probs is None:
            self._log_probs = self.logits.log_softmax(-1)
        return self._log_probs

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One choice for each state `[B]`."""
        return self.sample_at(self.fill_(torch.empty_like(self.logits), generator))

    @property
    def noise_like(self) -> Tensor:
        """The logits."""
        return self.logits

    @staticmethod
    def fill_(noise: Tensor, generator: torch.Generator | None) -> Tensor:
        """E ~ Exp(1) for each choice."""
        return noise.exponential_(generator=generator)

    def sample_at(self, noise: Tensor) -> Tensor:
        """Exponential race: argmin of E_a / p_a with E_a ~ Exp(1) picks a with probability p_a."""
        return (self.logits - noise.log()).argmax(-1)

    @property
    def mode(self) -> Tensor:
        """The most likely choice `[B]`."""
        return self.logits.argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """log π(a|s) `[B]`."""
        return self.log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Shannon entropy `[B]` in nats."""
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def kl(self, other: Categorical) -> Tensor:
        """Σ_a π(a) (log π(a) − log π'(a)) `[B]`; choices masked in both add 0, also to the gradient."""
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(-1)


class MultiCategorical:
    """D independent choices, actions `[B, D]` int64; logits `[B, D, n]`, padded with the lowest float."""

    def __init__(self, logits: Tensor) -> None:
        self.choices = Categorical(logits)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One sample of each choice `[B, D]`."""
        return self.choices.sample(generator)

    @property
    def noise_like(self) -> Tensor:
        """The logits."""
        return self.choices.logits

    fill_ = staticmethod(Categorical.fill_)

    def sample_at(self, noise: Tensor) -> Tensor:
        """See `Categorical`."""
        return self.choices.sample_at(noise)

    @property
    def mode(self) -> Tensor:
        """The most likely value of each choice `[B, D]`."""
        return self.choices.mode

    def log_prob(self, actions: Tensor) -> Tensor:
        """Sum of the D log-probabilities `[B]`."""
        return self.choices.log_prob(actions).sum(-1)

    def entropy(self) -> Tensor:
        """Sum of the D entropies `[B]`."""
        return self.choices.entropy().sum(-1)

    def kl(self, other: MultiCategorical) -> Tensor:
        """Sum of the D divergences `[B]`."""
        return self.choices.kl(other.choices).sum(-1)


class Bernoulli:
    """D independent bits, actions `[B, D]` of 0 and 1, logits `[B, D]` of the ones."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = at_least_float32(logits)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """D bits `[B, D]`."""
        return torch.bernoulli(self.logits.detach().sigmoid(), generator=generator)

    @property
    def mode(self) -> Tensor:
        """The more likely value of each bit `[B, D]`."""
        return (self.logits > 0).to(self.logits.dtype)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Sum over bits of log σ(±logit) `[B]`."""
        return nn.functional.logsigmoid(self.logits * (2 * actions - 1)).sum(-1)

    def entropy(self) -> Tensor:
        """Sum of the entropies of the bits `[B]`: softplus(l) − l σ(l) each."""
        return (nn.functional.softplus(self.logits) - self.logits * self.logits.sigmoid()).sum(-1)

    def kl(self, other: Bernoulli) -> Tensor:
        """Sum over bits of σ(l) (l − l') + softplus(l') − softplus(l) `[B]`."""
        # Uses the complement of the more likely value, whose logit is negative; large softplus terms would cancel.
        likely = self.logits > 0
        own, theirs = (torch.where(likely, -x, x) for x in (self.logits, other.logits))
        return (own.sigmoid() * (own - theirs) + nn.functional.softplus(theirs) - nn.functional.softplus(own)).sum(-1)
