"""A causal language model as a policy: a state is the text so far, an action the next token."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from pg_lightning.errors import UserError, require
from pg_lightning.policies.distributions import Categorical, at_least_float32
from pg_lightning.rollout import Batch, Rollout
from pg_lightning.text.models import ModelSpec, imported, make_model

NOTHING = -1  # where a context is shorter than the longest of its batch; they are aligned at their ends


class LanguagePolicy(nn.Module):
    """π(token | text so far) of a causal language model of `transformers`. See `Policy` for the methods.

    An observation is the last token, and the recurrent state `[N, S]` the tokens before it, with `NOTHING` at the left
    of shorter ones. Dropout is off: otherwise the ratio π/π_old would not be 1 before the first gradient step.

    Args:
        observation_space: `Discrete(V)`, the tokens; from the datamodule.
        action_space: the same.
        model: the name of a model of the hub, a folder, or the sizes of a new one: see `make_model`.
        temperature: divides the logits, in training and in evaluations, so that it is part of π.
        gradient_checkpointing: compute activations again in the backward pass, instead of keeping them.

    Raises:
        UserError: if there is no such model, or it does not know all tokens.
    """

    has_memory = True
    has_critic = False

    def __init__(
        self,
        observation_space: spaces.Discrete,
        action_space: spaces.Discrete,
        model: ModelSpec,
        temperature: float = 1.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require("model.policy.temperature", temperature, 1e-3)
        if not isinstance(action_space, spaces.Discrete):
            raise UserError("model.policy: a language model needs data.prompts, not data.env_id")
        self.vocabulary, self.temperature = int(action_space.n), temperature
        self.model = make_model(model, self.vocabulary)
        self.vocabulary = min(self.vocabulary, self.model.get_output_embeddings().weight.shape[0])
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def new_cache(self) -> dict[str, Any]:
        """An empty cache of keys and values, under the name that the model's `forward` has for it."""
        name = "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"
        return {name: imported().DynamicCache(config=self.model.config)}

    @property
    def context(self) -> int:
        """The most tokens of a prompt and its completion together."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @property
    def ends(self) -> list[int]:
        """Tokens with which a completion ends according to the model, besides that of the tokenizer."""
        ids = self.model.generation_config.eos_token_id
        return [] if ids is None else [ids] if isinstance(ids, int) else [*ids]

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The trainable weights, and no critic."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad], []

    def initial_state(self, num_envs: int) -> Tensor:
        """`[N, 0]`: no text."""
        return torch.zeros(num_envs, 0, dtype=torch.int64, device=self.device)

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next(self.parameters()).device

    @contextmanager
    def acting(self) -> Iterator[None]:
        """In evaluation mode: in training mode, checkpointing may ignore the cache of keys and values."""
        trains = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(trains)

    def sample(
        self, obs: Tensor, generator: torch.Generator, action_mask: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The next tokens `[N]`, and the text so far. Reads the whole text again; `complete` does not."""
        pi, state = self.act(obs, action_mask, state)
        return pi.sample(generator), state

    def mode(
        self, obs: Tensor, action_mask: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The most likely next tokens `[N]`, and the text so far."""
        pi, state = self.act(obs, action_mask, state)
        return pi.mode, state

    def act(
        self, obs: Tensor, action_mask: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Categorical, Tensor]:
        """π of the next token, and the text so far `[N, S + 1]`."""
        before = self.initial_state(len(obs)) if state is None else state
        text = torch.cat([before, obs[:, None].to(before)], 1)
        is_text = text != NOTHING
        logits = self.model(**inputs(text, is_text), use_cache=False, logits_to_keep=1).logits[:, -1]
        return self.distribution(logits, action_mask), text

    def env_actions(self, actions: Tensor) -> Tensor:
        """The tokens."""
        return actions

    def policy(self, samples: Batch) -> Categorical:
        """π of every valid token of whole completions, in one pass over prompts and completions."""
        sequences = samples.sequences
        assert sequences is not None
        valid = sequences.valid
        # What a batch of shorter texts has in common is not computed.
        rows = int(valid.any(1).sum())
        before = sequences.state[:, (sequences.state != NOTHING).any(0)]
        text = torch.cat([before, samples.obs[:rows].T], 1)
        is_text = torch.cat([before != NOTHING, valid[:rows].T], 1)
        logits = self.model(**inputs(text, is_text), use_cache=False, logits_to_keep=rows).logits
        return self.distribution(logits.transpose(0, 1)[valid[:rows]])

    def distribution(self, logits: Tensor, action_mask: Tensor | None = None) -> Categorical:
        """π `[B, V]` from the logits of a model, which may have more of them than there are tokens."""
        logits = at_least_float32(logits[..., : self.vocabulary])
        if self.temperature != 1:
            logits = logits / self.temperature
        if action_mask is not None:
            logits = logits.masked_fill(action_mask == 0, torch.finfo(logits.dtype).min)
        return Categorical(logits)

    def value(self, samples: Batch) -> Tensor:
        """There is none.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a language model has no critic: use REINFORCE, RLOO or GRPO")

    def forward(self, samples: Batch) -> tuple[Categorical, Tensor]:
        """There is no critic: see `value`."""
        return self.policy(samples), self.value(samples)

    def values(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """There is no critic.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a language model has no critic: use REINFORCE, RLOO or GRPO")


def inputs(text: Tensor, is_text: Tensor) -> dict[str, Any]:
    """The arguments of a model for texts `[N, L]` of which only some tokens count, also for the positions."""
    positions = (is_text.cumsum(1) - 1).clamp(min=0)
    return {
        "input_ids": text.clamp(min=0),
        "attention_mask": is_text.long(),
        "position_ids": positions,
    }
