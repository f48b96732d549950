"""Losses and gradients of TRL's trainers of text and of ours, on the same frozen completions.

Both start from prompts of different lengths, completions of different lengths, of which some are cut, and rewards; so
padding, advantages, old and reference log-probabilities are computed by each itself. TRL's trainer is given the
completions by its `rollout_func`. Old log-probabilities that differ from the current ones are those of other weights,
which are replaced between the rollout and the loss. What corresponds:

- `loss_type` grpo, bnpo, dr_grpo is `normalizer` sequence, tokens, constant. TRL's first two normalise each minibatch
  by its own completions, ours by those of the rollout; with one minibatch, as here, there is no difference.
- `scale_rewards` group, none is `scale_advantage`. Both divide by the standard deviation of a sample (n − 1) + 1e-4.
- `beta` is `kl_coef` with the estimator k3 in the loss; in RLOO k1 in the reward. `use_bias_correction_kl`, by default
  on, must be off: it multiplies k3 by the ratio, which changes its gradient from that of KL(π_ref ‖ π) to that of
  KL(π ‖ π_ref), also on the first step. Here the latter is `kl_in: reward` with k1, or k2 in the loss.
- `epsilon`, `epsilon_high` are `clip_range`, `clip_range_high`.
- `num_iterations` 2 makes TRL keep old log-probabilities; here `num_epochs`.
- `mask_truncated_completions` must be off: completions that were cut learn, here too.
- `temperature` must be 1 in both.

RLOO: TRL's loss is clipped per completion, so on the first step its value is the mean advantage and its gradient that
of Σ A log π; ours has this gradient and another value. Only gradients are compared, with `normalize_advantages` off.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trl_options import COMMON, GRPO_ONLY, dataset

from pg_lightning.algorithms import GRPO, RLOO, PolicyGradientModule
from pg_lightning.rollout import Batch, Rollout
from pg_lightning.text.collector import rollout_of
from pg_lightning.text.completion import Completions
from pg_lightning.text.models import make_model
from pg_lightning.text.tokenizer import aligned, make_tokenizer

TOLERANCE = 1e-5  # of the loss, and of the gradient relative to its largest entry
CHARACTERS = "()[]{}|"
SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "context": 32}
K, M, T = 4, 3, 6  # completions of a prompt, prompts, most tokens
NORMALIZERS = {"grpo": "sequence", "bnpo": "tokens", "dr_grpo": "constant"}


@dataclass
class Case:
    """Options with TRL's names; `old` is whether other weights made the completions."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    old: bool = False
    algorithm: type[PolicyGradientModule] = GRPO


CASES = [
    *(
        Case(f"{loss_type}, scale_rewards {scale}", {"loss_type": loss_type, "scale_rewards": scale})
        for loss_type in NORMALIZERS
        for scale in ("group", "none")
    ),
    *(
        Case(f"{loss_type}, beta 0.1", {"loss_type": loss_type, "scale_rewards": "group", "beta": 0.1})
        for loss_type in NORMALIZERS
    ),
    *(
        Case(
            f"{loss_type}, old policy, epsilon 0.1 and {high}" + (f", beta {beta}" if beta else ""),
            {"loss_type": loss_type, "scale_rewards": "group", "epsilon": 0.1, "epsilon_high": high, "beta": beta},
            old=True,
        )
        for loss_type, high, beta in (("grpo", 0.1, 0.0), ("bnpo", 0.3, 0.0), ("dr_grpo", 0.3, 0.0), ("grpo", 0.3, 0.1))
    ),
    Case("RLOO", algorithm=RLOO),
    Case("RLOO, beta 0.1", {"beta": 0.1}, algorithm=RLOO),
]


@dataclass
class Frozen:
    """Completions with their rewards, and three sets of weights: now, when they were drawn, and of the reference.

    Attributes:
        prompts: M texts.
        tokens: of each of them.
        completions: M K lists of tokens, those of a prompt in a row.
        rewards: of each of them.
        weights: by name, `now`, `old`, `reference`.
    """

    tokenizer: Any
    prompts: list[str]
    tokens: list[list[int]]
    completions: list[list[int]]
    rewards: list[float]
    weights: dict[str, dict[str, Tensor]]

    def rollout(self) -> Rollout:
        """In our form."""
        valid = torch.zeros(T, M * K, dtype=torch.bool)
        tokens = torch.zeros(T, M * K, dtype=torch.int64)
        for n, completion in enumerate(self.completions):
            tokens[: len(completion), n], valid[: len(completion), n] = torch.tensor(completion), True
        prompts = aligned([torch.tensor(prompt) for prompt in self.tokens]).repeat_interleave(K, 0)
        ended = torch.tensor([completion[-1] == self.tokenizer.eos_token_id for completion in self.completions])
        found = Completions(prompts, tokens, torch.zeros(T, M * K), valid, ended)
        return rollout_of(found, torch.tensor(self.rewards), K, policy_version=0)


def freeze(seed: int = 0) -> Frozen:
    """Completions at random, of 1 to T tokens; all rewards of the last prompt are equal."""
    generator = torch.Generator().manual_seed(seed)
    tokenizer = make_tokenizer({"characters": CHARACTERS})
    prompts = ["([|", "{|", "([]{(|"]

    def completion() -> list[int]:
        length = int(torch.randint(1, T + 1, (), generator=generator))
        is_cut = length == T and bool(torch.rand((), generator=generator) < 0.5)
        tokens = torch.randint(2, len(tokenizer), (length,), generator=generator).tolist()
        return tokens if is_cut else [*tokens[:-1], tokenizer.eos_token_id]

    completions = [completion() for _ in range(M * K)]
    rewards = torch.rand(M * K, generator=generator)
    rewards[-K:] = 0.5
    torch.manual_seed(seed)
    model = make_model(SIZES, len(tokenizer))
    weights = {}
    for name, noise in {"now": 0.0, "old": 0.03, "reference": 0.06}.items():
        weights[name] = {
            key: (
                0.2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(i)) if value.ndim > 1 else value
            )
            + noise * torch.randn(value.shape, generator=generator)
            for i, (key, value) in enumerate(model.named_parameters())
        }
    tokens = [tokenizer(prompt).input_ids for prompt in prompts]
    return Frozen(tokenizer, prompts, tokens, completions, rewards.tolist(), weights)


def load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Replaces the weights by name; embeddings and head are one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def gradient(loss: Tensor, model: nn.Module) -> Tensor:
    parameters = [parameter for _, parameter in sorted(model.named_parameters())]
    found = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


def ours(case: Case, frozen: Frozen) -> tuple[Tensor, Tensor]:
    """The loss and its gradient, as the algorithm's update would hand them to the learner."""
    beta = case.options.get("beta", 0.0)
    options: dict[str, Any] = {"kl_coef": beta}
    if case.algorithm is GRPO:
        options |= {
            "normalizer": NORMALIZERS[case.options["loss_type"]],
            "scale_advantage": case.options["scale_rewards"] == "group",
            "num_epochs": 2 if case.old else 1,
            "clip_range": case.options.get("epsilon", 0.2),
            "clip_range_high": case.options.get("epsilon_high"),
        }
    tokens = len(frozen.tokenizer)
    algorithm: Any = make_algorithm(case.algorithm, tokens, options)
    load(algorithm.network.model, frozen.weights["old" if case.old else "now"])
    if algorithm.reference is not None:
        load(algorithm.reference.model, frozen.weights["reference"])
    rollout, learner, batches = frozen.rollout(), algorithm.learner, []
    # The batch is kept instead of learned from.
    learner.rows = [rollout.env_steps]
    learner.step = lambda loss, batch: batches.append((loss, batch)) or {}
    learner.passes = lambda loss, batch, *_: batches.append((loss, batch))
    learner.mean_stats = dict
    algorithm.update(rollout)
    load(algorithm.network.model, frozen.weights["now"])
    loss_of: Callable[[Batch], tuple[Tensor, Any]]
    loss_of, batch = batches[0]
    loss, _ = loss_of(batch)
    return loss.detach(), gradient(loss, algorithm.network.model)


def make_algorithm(algorithm: type[PolicyGradientModule], tokens: int, options: dict[str, Any]) -> PolicyGradientModule:
    from gymnasium.spaces import Discrete

    policy = {"class_path": "pg_lightning.text.LanguagePolicy", "init_args": {"model": SIZES}}
    return algorithm(observation_space=Discrete(tokens), action_space=Discrete(tokens), policy=policy, **options)


def theirs(case: Case, frozen: Frozen, folder: Path) -> tuple[Tensor, Tensor]:
    """The loss and its gradient, by TRL's trainer; its models are read from `folder`."""
    import trl

    is_grpo = case.algorithm is GRPO
    options: dict[str, Any] = {"beta": 0.0, "num_iterations": 2 if case.old else 1} | case.options
    options |= GRPO_ONLY if is_grpo else {"normalize_advantages": False}
    config = trl.GRPOConfig if is_grpo else trl.RLOOConfig
    settings = config(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=M * K,
        num_generations=K,
        max_completion_length=T,
        temperature=1.0,
        **COMMON,
        **options,
    )

    def frozen_rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        prompt_ids = [tokens for tokens in frozen.tokens for _ in range(K)]
        return {"prompt_ids": prompt_ids, "completion_ids": frozen.completions, "logprobs": None}

    rows = [{"prompt": prompt} for prompt in frozen.prompts]
    trainer: Any = (trl.GRPOTrainer if is_grpo else trl.RLOOTrainer)(
        model=str(folder),
        reward_funcs=lambda **_: frozen.rewards,
        args=settings,
        train_dataset=dataset(frozen.prompts),
        processing_class=frozen.tokenizer,
        **({"rollout_func": frozen_rollout} if is_grpo else {}),
    )
    if not is_grpo:  # it has no `rollout_func`
        trainer._generate_single_turn = lambda *_, **__: frozen.completions  # noqa: SLF001
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    load(trainer.model, frozen.weights["old" if case.old else "now"])
    if trainer.ref_model is not None:
        load(trainer.ref_model, frozen.weights["reference"])
    inputs = trainer._prepare_inputs([row for row in rows for _ in range(K)])  # noqa: SLF001
    load(trainer.model, frozen.weights["now"])
    loss = trainer.compute_loss(trainer.model, inputs)
    return loss.detach(), gradient(loss, trainer.model)


def compare() -> list[dict[str, Any]]:
    """One row per case: the losses, the differences, and whether they are within the tolerance."""
    frozen = freeze()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        model = make_model(SIZES, len(frozen.tokenizer))
        model.save_pretrained(name)
        for case in CASES:
            our_loss, our_gradient = ours(case, frozen)
            their_loss, their_gradient = theirs(case, frozen, Path(name))
            largest = their_gradient.abs().max()
            row: dict[str, Any] = {
                "case": case.name,
                "loss": our_loss.item() if case.algorithm is GRPO else None,
                "loss difference": (our_loss - their_loss).abs().item() if case.algorithm is GRPO else None,
                "gradient difference": ((our_gradient - their_gradient).abs().max() / largest).item(),
                "largest gradient": largest.item(),
            }
            row["agrees"] = max(row["loss difference"] or 0.0, row["gradient difference"]) <= TOLERANCE
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| options, with TRL's names | loss | difference | of the gradient, relative | |", "|---|--:|--:|--:|---|"]
    for row in rows:
        values = ["–"] * 2 if row["loss"] is None else [f"{row['loss']:.6f}", f"{row['loss difference']:.1e}"]
        ok = "agrees" if row["agrees"] else "DIFFERS"
        lines.append(f"| {row['case']} | {' | '.join(values)} | {row['gradient difference']:.1e} | {ok} |")
    return "\n".join(lines)
