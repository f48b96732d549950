"""Trust region policy optimisation (Schulman et al. 2015): the largest natural step within a KL trust region."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pg_lightning.errors import require
from pg_lightning.learning import Normalize, PolicyGradientModule
from pg_lightning.learning.gradient import flat_gradient, set_parameters
from pg_lightning.losses import value_loss
from pg_lightning.rollout import Batch, Rollout
from pg_lightning.statistics import explained_variance

BACKTRACK = 0.8  # per shortening of the line search


class TRPO(PolicyGradientModule):
    """The actor steps along the natural gradient F⁻¹g, within KL(π_old ‖ π) ≤ 1.5 δ; the critic uses regression.

    g is the gradient of the surrogate mean( π/π_old A ), F the Fisher information; its products with vectors are
    second derivatives of the KL (appendix C of the paper). With several ranks, g, F, surrogate and KL are computed over
    the rows of all ranks, and all ranks take the same step.

    Args:
        gae_lambda: λ of the advantage estimates.
        target_kl: δ, the size of the trust region.
        cg_steps: steps of the conjugate gradient method for F⁻¹g.
        cg_damping: multiple of the identity that is added to F.
        line_search_steps: how often the step is shortened before the actor is left unchanged.
        num_epochs: passes of the critic over a rollout.
        num_minibatches: gradient steps of the critic per pass.
        normalize_advantage: standardise the advantages over all ranks; with `per_rank`, on each rank separately.
        **kwargs: see `PolicyGradientModule`; `lr`, `optimizer` and related options are those of the critic.
    """

    def __init__(
        self,
        gae_lambda: float = 0.97,
        target_kl: float = 0.01,
        cg_steps: int = 10,
        cg_damping: float = 0.1,
        line_search_steps: int = 10,
        num_epochs: int = 10,
        num_minibatches: int = 4,
        normalize_advantage: Normalize = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(ent_coef=0.0, vf_coef=1.0, critic_lr=None, critic_optimizer=None, shared_torso=False, **kwargs)
        require("model.gae_lambda", gae_lambda, 0, 1)
        require("model.target_kl", target_kl, 0)
        require("model.cg_damping", cg_damping, 0)
        counts = {"cg_steps": cg_steps, "line_search_steps": line_search_steps, "num_epochs": num_epochs}
        for name, count in {**counts, "num_minibatches": num_minibatches}.items():
            require(f"model.{name}", count, 1)
        self.gae_lambda, self.normalize_advantage = gae_lambda, normalize_advantage
        self.target_kl, self.line_search_steps = target_kl, line_search_steps
        self.cg_steps, self.cg_damping = cg_steps, cg_damping
        self.num_epochs, self.num_minibatches = num_epochs, num_minibatches

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The optimizer updates only the critic."""
        return {"critic": super().parameter_groups()["critic"]}

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """One natural step of the actor, then `num_epochs` x `num_minibatches` gradient steps of the critic."""
        batch = self.targets(rollout, self.gae_lambda, self.normalize_advantage)
        stats = self.natural_step(batch)
        self.learner.passes(self.loss, batch, self.num_epochs, self.num_minibatches)
        explained = explained_variance(batch.old_values, batch.returns)
        return stats | self.learner.mean_stats() | {"train/explained_variance": explained}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The squared error of V, which the optimizer minimises."""
        loss = value_loss(self.network(batch)[1], batch.returns)
        return loss, {"train/value_loss": loss.detach()}

    def natural_step(self, batch: Batch) -> dict[str, Tensor]:
        """Moves the actor along F⁻¹g until the surrogate has improved within the trust region, or not at all."""
        actor = self.network.parameter_groups()[0]
        pi = self.network.policy(batch)
        with torch.no_grad():
            old = self.network.policy(batch)
        old_log_probs = old.log_prob(batch.actions)
        surrogate = ((pi.log_prob(batch.actions) - old_log_probs).exp() * batch.advantages).mean()
        gradient = self.learner.mean_vector(flat_gradient(surrogate, actor), batch)
        kl_gradient = flat_gradient(old.kl(pi).mean(), actor, create_graph=True)

        def fisher(v: Tensor) -> Tensor:
            return self.learner.mean_vector(flat_gradient(dot(kl_gradient, v), actor), batch) + self.cg_damping * v

        direction = conjugate_gradient(fisher, gradient, self.cg_steps)
        step = direction * (2 * self.target_kl / dot(direction, fisher(direction)).clamp(min=1e-12)).sqrt()
        before = torch.nn.utils.parameters_to_vector(actor).detach().clone()
        improvement = kl = torch.zeros((), device=gradient.device)
        for k in range(self.line_search_steps):
            set_parameters(actor, before + BACKTRACK**k * step)
            with torch.no_grad():
                pi = self.network.policy(batch)
                ratio = (pi.log_prob(batch.actions) - old_log_probs).exp()
                improvement = self.learner.mean(((ratio - 1) * batch.advantages).mean(), batch)
                kl = self.learner.mean(old.kl(pi).mean(), batch)
            if improvement > 0 and kl <= 1.5 * self.target_kl:
                break
        else:
            set_parameters(actor, before)
            improvement, kl, pi, k = torch.zeros_like(improvement), torch.zeros_like(kl), old, k + 1
        return {
            "train/policy_loss": -improvement.detach(),
            "train/approx_kl": kl.detach(),
            "train/line_search_steps": torch.tensor(float(k), device=gradient.device),
            "train/entropy": pi.entropy().mean().detach(),
        }


def dot(a: Tensor, b: Tensor) -> Tensor:
    """a · b of `[P]` vectors, in their own precision: `@` would use half precision under mixed precision."""
    return (a * b).sum()


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, steps: int, tolerance: float = 1e-12) -> Tensor:
    """x with A x ≈ b for a positive definite A that is only available as products A v (Hestenes & Stiefel 1952).

    Args:
        product: v `[P]` to A v `[P]`.
        b: `[P]`.
        steps: maximum number; P steps are exact. Stops when the squared residual is `tolerance` times that of x = 0.
    """
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    enough = tolerance * (squared := dot(residual, residual))
    for _ in range(steps):
        if squared <= enough:
            break
        image = product(direction)
        alpha = squared / dot(direction, image)
        x += alpha * direction
        residual -= alpha * image
        before, squared = squared, dot(residual, residual)
        direction = residual + squared / before * direction
    return x
