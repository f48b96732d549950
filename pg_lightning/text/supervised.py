"""Learns from examples before the first rollout: a policy that never earns a reward has nothing to improve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pg_lightning.class_path import ClassPath, resolve
from pg_lightning.envs import env_seed
from pg_lightning.errors import UserError, require
from pg_lightning.rollout import Batch, Sequences
from pg_lightning.text.calls import reported
from pg_lightning.text.datamodule import TextDataModule
from pg_lightning.text.prompts import Prompt
from pg_lightning.text.tokenizer import aligned, encode, tokens_of


class SupervisedStart(Callback):
    """Fits the policy to pairs of prompt and completion, by maximum likelihood of the completions and their end.

    The reference of a penalty on KL(π ‖ π_ref) is the policy after it. A resumed run does not repeat it.

    Args:
        corpus: the class path of a function that returns pairs `(prompt, completion)`; it is called with `init_args`.
        steps: gradient steps of AdamW.
        batch_size: pairs per step.
        lr: learning rate, which falls linearly to 0.

    Raises:
        UserError: if a number is out of range.
    """

    def __init__(self, corpus: ClassPath, steps: int = 500, batch_size: int = 64, lr: float = 1e-3) -> None:
        require("SupervisedStart.steps", steps, 1)
        require("SupervisedStart.batch_size", batch_size, 1)
        require("SupervisedStart.lr", lr, 0)
        self.corpus, self.steps, self.batch_size, self.lr = corpus, steps, batch_size, lr

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Trains, unless the run continues another; all ranks alike."""
        module: Any = pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if module.env_steps:
            return
        if not isinstance(data, TextDataModule):
            raise UserError("trainer.callbacks: SupervisedStart needs data.prompts")
        network = module.network
        pairs = self._pairs(data, network.context)
        optimizer = torch.optim.AdamW(network.parameter_groups()[0], self.lr)
        generator = torch.Generator().manual_seed(env_seed(data.seed, 3))
        losses = []
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.lr * (1 - step / self.steps)
            chosen = torch.randint(len(pairs), (self.batch_size,), generator=generator).tolist()
            batch = example_batch([pairs[i] for i in chosen], module.device)
            with trainer.precision_plugin.forward_context():
                loss = -network.policy(batch).log_prob(batch.actions).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        optimizer.zero_grad()
        if trainer.world_size > 1:  # sums on a GPU may differ in their last bits
            own = {name: x.cpu() for name, x in network.state_dict().items()}
            network.load_state_dict(trainer.strategy.broadcast(own))
        if getattr(module, "reference", None) is not None:
            module.reference.load_state_dict(network.state_dict())
        last = torch.stack(losses[-max(1, self.steps // 10) :]).mean().item()
        rank_zero_info(f"learned from {len(pairs):,} examples: {last:.3f} nats per token after {self.steps} steps")

    def _pairs(self, data: TextDataModule, context: int) -> list[tuple[Tensor, Tensor]]:
        make, arguments = resolve("SupervisedStart.corpus", self.corpus)
        with reported("SupervisedStart.corpus: it"):
            pairs = [*make(**arguments)]
        if not pairs:
            raise UserError("SupervisedStart.corpus: is empty")
        for number, pair in enumerate(pairs):
            if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(x, str) for x in pair)):
                raise UserError(f"SupervisedStart.corpus: entry {number + 1} is no pair of texts (prompt, completion)")
        longest = context - data.max_new_tokens
        prompts = encode(data.tokenizer, [Prompt(prompt) for prompt, _ in pairs], longest, "SupervisedStart.corpus")
        ends = [data.tokenizer.eos_token_id]
        what = "SupervisedStart.corpus: a completion"
        completions = [
            torch.tensor([*tokens_of(data.tokenizer, completion, what, add_special_tokens=False), *ends])
            for _, completion in pairs
        ]
        if (most := max(map(len, completions))) > data.max_new_tokens:
            raise UserError(
                f"SupervisedStart.corpus: a completion has {most} tokens with its end; raise data.max_new_tokens"
            )
        return [*zip(prompts, completions, strict=True)]


def example_batch(pairs: Sequence[tuple[Tensor, Tensor]], device: torch.device | str) -> Batch:
    """Pairs of prompt and completion as rows; their advantages and values are 1."""
    prompts, T = aligned([prompt for prompt, _ in pairs]), max(len(completion) for _, completion in pairs)
    actions = torch.zeros(T, len(pairs), dtype=torch.int64)
    valid = torch.zeros(T, len(pairs), dtype=torch.bool)
    for n, (_, completion) in enumerate(pairs):
        actions[: len(completion), n], valid[: len(completion), n] = completion, True
    prompts, actions, valid = prompts.to(device), actions.to(device), valid.to(device)
    ones = torch.ones(int(valid.sum()), device=device)
    sequences = Sequences(prompts[:, :-1], torch.zeros_like(valid), valid)
    obs = torch.cat([prompts[:, -1][None], actions[:-1]])
    return Batch(obs, actions[valid], ones, ones, ones, sequences=sequences)
