"""Collects completions of prompts as rollouts, and plays those of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from pg_lightning.actor import Actor
from pg_lightning.envs import env_seed
from pg_lightning.rollout import Episode, Rollout
from pg_lightning.text.completion import Completions, complete
from pg_lightning.text.policy import LanguagePolicy
from pg_lightning.text.prompts import Prompt
from pg_lightning.text.rewards import Rewards
from pg_lightning.text.tokenizer import aligned


class Texts:
    """Prompts with their tokens, and what their completions are worth.

    Args:
        tokenizer: of the model.
        prompts: M texts or chats.
        tokens: of each of them.
        rewards: of completions.
        max_new_tokens: T.
        stop: strings with which a completion ends.
        ends: tokens with which it ends; by default that of the tokenizer.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        tokens: Sequence[Tensor],
        rewards: Rewards,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        ends: Iterable[int] | None = None,
    ) -> None:
        self.tokenizer, self.prompts, self.tokens, self.rewards = tokenizer, prompts, tokens, rewards
        self.max_new_tokens, self.stop = max_new_tokens, [*stop]
        self._ends = torch.tensor(sorted([tokenizer.eos_token_id] if ends is None else ends))

    def complete(
        self, actor: Actor, chosen: Sequence[int], num_completions: int, generator: torch.Generator | None
    ) -> Completions:
        """Completions of some prompts by a policy; see `complete`."""
        prompts = aligned([self.tokens[i] for i in chosen]).to(actor.device)
        with actor.acting():
            policy = cast(LanguagePolicy, actor.policy)
            found = complete(policy, prompts, num_completions, self.max_new_tokens, self._is_over, generator)
        return Completions(**{name: x.clone() for name, x in vars(found).items()})  # made in inference mode

    def texts(self, completions: Completions) -> list[str]:
        """The completions as text, without the token that ends them."""
        tokens = [column[ok].tolist() for column, ok in zip(completions.tokens.T, completions.valid.T, strict=True)]
        texts: list[str] = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [self._before_stop(text) for text in texts]

    def _before_stop(self, text: str) -> str:
        found = [i for stop in self.stop if (i := text.find(stop)) >= 0]
        return text[: min(found)] if found else text

    def _is_over(self, tokens: Tensor, columns: Tensor) -> Tensor:
        over = torch.isin(tokens[-1], self._ends.to(tokens.device))
        if self.stop:
            longest = max(len(stop.encode()) for stop in self.stop)  # a token may be a single byte
            texts = self.tokenizer.batch_decode(tokens[-longest - 1 :].T.tolist())
            over |= torch.tensor([any(stop in text for stop in self.stop) for text in texts], device=over.device)
        return over


class CompletionCollector:
    """Makes a rollout of completions: a column is a completion, a row a token, and the reward is at the last one.

    Every pass over the prompts has an order of its own; the ranks share the prompts.

    Args:
        texts: the prompts.
        num_prompts: of a rollout.
        num_completions: of each prompt.
        seed: of the run.
        rank: of this process.
        world_size: number of processes.

    Attributes:
        is_given_up: whether a rollout was interrupted.
    """

    def __init__(
        self, texts: Texts, num_prompts: int, num_completions: int, seed: int, rank: int, world_size: int
    ) -> None:
        self.texts, self.num_prompts, self.num_completions = texts, num_prompts, num_completions
        self.is_given_up = False
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._rollouts = 0

    def collect(self, actor: Actor) -> Rollout:
        """The next rollout, by the current policy."""
        chosen = self._next_prompts()
        seed = env_seed(self._seed, 1, self._rollouts, self._rank)
        generator = torch.Generator(actor.device).manual_seed(seed)
        completions = self.texts.complete(actor, chosen, self.num_completions, generator)
        prompts = [self.texts.prompts[i] for i in chosen for _ in range(self.num_completions)]
        rewards, parts = self.texts.rewards(prompts, self.texts.texts(completions))
        self._rollouts += 1
        measures = {f"reward/{name}": part for name, part in parts.items()} if len(parts) > 1 else {}
        measures["truncated"] = (~completions.ended).float()
        rollout = rollout_of(completions, rewards, self.num_completions, actor.policy_version)
        return replace(rollout, measures=measures)

    def state_dict(self) -> dict[str, Any]:
        """The number of rollouts so far, from which everything else follows."""
        return {"rollouts": self._rollouts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues after so many rollouts."""
        self._rollouts = int(state["rollouts"])

    def close(self) -> None:
        """Nothing is open."""

    def _next_prompts(self) -> list[int]:
        M, size = len(self.texts.prompts), self.num_prompts * self._world_size
        first = self._rollouts * size + self._rank * self.num_prompts
        places = range(first, first + self.num_prompts)
        orders = {e: self._order(e, M) for e in {place // M for place in places}}
        return [int(orders[place // M][place % M]) for place in places]

    def _order(self, epoch: int, count: int) -> Tensor:
        return torch.randperm(count, generator=torch.Generator().manual_seed(env_seed(self._seed, 0, epoch)))


def rollout_of(completions: Completions, rewards: Tensor, num_completions: int, policy_version: int) -> Rollout:
    """A rollout `[T, N]` of N completions with their rewards `[N]`."""
    valid = completions.valid
    device, (T, N) = valid.device, valid.shape
    rewards = rewards.to(device)
    lengths = valid.sum(0)
    last = torch.zeros_like(valid)
    last[lengths - 1, torch.arange(N, device=device)] = True
    terminated = last & completions.ended
    return Rollout(
        obs=torch.cat([completions.prompts[:, -1][None], completions.tokens]),
        actions=completions.tokens,
        rewards=last * rewards,
        terminated=terminated,
        truncated=last & ~terminated,
        valid=valid,
        timesteps=torch.arange(T, device=device)[:, None].expand(T, N).contiguous(),
        final_obs=completions.tokens.new_zeros(0),
        final_rows=completions.tokens.new_zeros(0),
        episode_returns=rewards,
        episode_lengths=lengths.float(),
        policy_version=policy_version,
        env_steps=int(lengths.sum()),
        state=completions.prompts[:, :-1],
        groups=torch.arange(N, device=device) // num_completions,
    )


class CompletionEvaluation(IterableDataset[Episode]):
    """One completion of each prompt, in batches; each is an episode.

    Args:
        texts: the prompts.
        chosen: their numbers.
        actor: the policy.
        batch_size: completions at a time.
        seed: of the samples; None for the most likely tokens.
    """

    def __init__(self, texts: Texts, chosen: Sequence[int], actor: Actor, batch_size: int, seed: int | None) -> None:
        self.texts, self.chosen, self.actor, self.batch_size, self.seed = texts, [*chosen], actor, batch_size, seed

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[Episode]:
        """The episodes in the order of the prompts."""
        device = self.actor.device
        generator = None if self.seed is None else torch.Generator(device).manual_seed(self.seed)
        for start in range(0, len(self.chosen), self.batch_size):
            chosen = self.chosen[start : start + self.batch_size]
            completions = self.texts.complete(self.actor, chosen, 1, generator)
            prompts, texts = [self.texts.prompts[i] for i in chosen], self.texts.texts(completions)
            rewards, parts = self.texts.rewards(prompts, texts)
            lengths = completions.valid.sum(0).tolist()
            for n, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
                columns: dict[str, Any] = {**prompt.fields, "prompt": prompt.text, "completion": text}
                columns |= {"reward": rewards[n].item()}
                columns |= {f"reward/{name}": part[n].item() for name, part in parts.items() if len(parts) > 1}
                columns |= {"tokens": lengths[n], "ended": bool(completions.ended[n])}
                length = torch.tensor([lengths[n]], dtype=torch.float64)
                yield Episode(rewards[n].double().view(1), length, not columns["ended"], {}, columns=columns)
