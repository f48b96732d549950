"""Actor and critic: two networks, or one torso with two heads; optionally recurrent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from pg_lightning.class_path import ClassPath
from pg_lightning.errors import UserError, require
from pg_lightning.policies.distributions import Distribution
from pg_lightning.policies.heads import make_head
from pg_lightning.policies.normalizers import ObservationNormalizer, ValueNormalizer
from pg_lightning.policies.numpy_actor import FEW_ROWS, Sampler, numpy_sampler
from pg_lightning.policies.obs_groups import ObsGroups, columns_of, group_torso, resolve_groups
from pg_lightning.policies.recurrent import Memory, MemoryKind
from pg_lightning.policies.torsos import Activation, make_torso, orthogonal_, out_features
from pg_lightning.rollout import Batch, Rollout, Sequences


class ActorCritic(nn.Module):
    """π(·|s) and V(s).

    Args:
        observation_space: a `Box`.
        action_space: see `make_head`.
        torso: maps observations to features: `mlp`, `nature_cnn` for images, `board_cnn` for boards, or the class path
            of a module. Its constructor gets the observation space (a `Box` of floats if observations are normalised);
            it maps `[B, *obs]` floats to `[B, F]` features and has F as `out_features`.
        hidden_sizes: widths of the hidden layers of actor and critic (`mlp`).
        activation: of the hidden layers (`mlp`).
        layer_norm: normalise the units of every hidden layer (`mlp`).
        memory: `lstm` or `gru` for tasks that need information from earlier observations; gradients flow back through
            one rollout.
        memory_size: width of the recurrent cell.
        shared_torso: actor and critic share torso and memory.
        head: maps features to π; null chooses by the action space. For `Box`: `gaussian`, `squashed_gaussian` or
            `beta`. Or a class path.
        log_std_init: initial log standard deviation of Gaussian actions.
        state_dependent_std: the standard deviation of Gaussian actions comes from the network.
        normalize_obs: scale observations by their running mean and variance.
        normalize_values: the critic learns targets scaled by their running mean and variance.
        obs_groups: the entries of a `Dict` observation that actor and critic see, as in `{actor: [state], critic:
            [state, privileged_state]}`. By default, if there are two entries, `policy` and `critic`, `actor` and
            `critic` or `state` and `privileged_state`, the first is the actor's and the second the critic's; else both
            see all.
        critic: whether there is one.

    Attributes:
        init_args: the constructor's arguments.
        groups: the names of the groups that actor and critic see; None if observations have no groups.

    Raises:
        UserError: if a space is not supported or a number out of range.
    """

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        torso: ClassPath = "mlp",
        hidden_sizes: list[int] = [64, 64],  # noqa: B006 - read by the command line, never written
        activation: Activation = "tanh",
        layer_norm: bool = False,
        memory: MemoryKind | None = None,
        memory_size: int = 64,
        shared_torso: bool = False,
        head: ClassPath | None = None,
        log_std_init: float = 0.0,
        state_dependent_std: bool = False,
        normalize_obs: bool = False,
        normalize_values: bool = False,
        obs_groups: ObsGroups | None = None,
        critic: bool = True,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.init_args = arguments
        for name, size in (("memory_size", memory_size), *(("hidden_sizes", width) for width in hidden_sizes)):
            require(f"model.{name}", size, 1)
        if not isinstance(observation_space, spaces.Box):
            raise UserError(f"data.env_id: observation space {observation_space} has no vector form")
        self.normalizer = ObservationNormalizer(observation_space.shape) if normalize_obs else None
        self.value_normalizer = ValueNormalizer() if normalize_values else None
        # The torso's input space: uint8 images become floats if they are normalised.
        clip = None if self.normalizer is None else self.normalizer.clip
        seen = observation_space if clip is None else spaces.Box(-clip, clip, observation_space.shape, np.float32)
        self.groups = resolve_groups(observation_space, obs_groups, critic, shared_torso)

        def new_torso(role: str) -> nn.Module:
            columns = columns_of(observation_space, self.groups, role)
            return group_torso(seen, columns, lambda box: make_torso(box, torso, hidden_sizes, activation, layer_norm))

        self.actor_torso = new_torso("actor")
        self.critic_torso = None if not critic else self.actor_torso if shared_torso else new_torso("critic")

        def new_memory(torso: nn.Module | None) -> Memory | None:
            if memory is None or torso is None:
                return None
            return Memory(memory, out_features(torso), memory_size)

        self.actor_memory = new_memory(self.actor_torso)
        self.critic_memory = self.actor_memory if shared_torso else new_memory(self.critic_torso)
        features = out_features(self.actor_memory or self.actor_torso)
        self.actor_head = make_head(features, action_space, head, log_std_init, state_dependent_std)
        self.critic_head = nn.Linear(out_features(self.critic_memory or self.critic_torso), 1) if critic else None
        self._sampler: Sampler | None = None
        self._may_sample = False
        orthogonal_(self.actor_head.linear, 0.01)
        if self.critic_head is not None:
            orthogonal_(self.critic_head, 1.0)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The actor's parameters and the critic's; shared parameters belong to the actor's."""
        actor = [p for part in (self.actor_torso, self.actor_memory, self.actor_head) for p in _parameters(part)]
        critic = [p for part in (self.critic_torso, self.critic_memory, self.critic_head) for p in _parameters(part)]
        known = set(map(id, actor))
        return actor, [p for p in critic if id(p) not in known]

    @property
    def has_memory(self) -> bool:
        """Whether the policy is recurrent."""
        return self.actor_memory is not None

    def initial_state(self, num_envs: int) -> Tensor | None:
        """The initial state `[N, S]`, the actor's and then the critic's if it has its own; None unless recurrent."""
        if self.actor_memory is None:
            return None
        weight = self.actor_head.linear.weight
        return torch.zeros(num_envs, sum(_state_sizes(self)), dtype=weight.dtype, device=weight.device)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Within this context weights must not change or move; `sample` may take the NumPy fast path for few rows."""
        self._may_sample = self.actor_memory is None
        try:
            yield
        finally:
            self._may_sample, self._sampler = False, None

    def sample(
        self,
        obs: Tensor,
        generator: torch.Generator,
        action_mask: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Actions `[N, *action]` drawn from π(·|s) for observations `[N, *obs]`, and the next state `[N, S]`."""
        if self._may_sample:  # not before: compiled steps do not need it
            self._may_sample, self._sampler = False, numpy_sampler(self.actor_torso, self.actor_head, self.normalizer)
        if self._sampler is not None and action_mask is None and len(obs) <= FEW_ROWS:
            return self._sampler(obs, generator), None
        pi, state = self.act(obs, action_mask, state)
        return pi.sample(generator), state

    def mode(
        self, obs: Tensor, action_mask: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The deterministic actions `[N, *action]`, and the next state `[N, S]`."""
        pi, state = self.act(obs, action_mask, state)
        return pi.mode, state

    def env_actions(self, actions: Tensor) -> Tensor:
        """Actions `[N, *action]` in the shape, range and dtype of the action space."""
        return self.actor_head.env_actions(actions)

    def act(
        self, obs: Tensor, action_mask: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Distribution, Tensor | None]:
        """π(·|s) for observations `[N, *obs]`, and the next state `[N, S]`."""
        x = self._input(obs)
        features = self.actor_torso(x)
        if self.actor_memory is None or state is None:
            return self._head(features, action_mask), None
        actor_state, *critic_state = state.split(_state_sizes(self), -1)
        features, actor_state = self.actor_memory(features, actor_state)
        # The critic's recurrent state advances as well: the first row of an update needs it.
        if critic_state and self.critic_memory is not None and self.critic_torso is not None:
            critic_state[0] = self.critic_memory(self.critic_torso(x), critic_state[0])[1]
        return self._head(features, action_mask), torch.cat([actor_state, *critic_state], -1)

    def forward(self, samples: Batch) -> tuple[Distribution, Tensor]:
        """π(·|s) and V(s) `[B]`, the values in the unit of `samples.returns`; a shared torso runs once."""
        x = self._input(_rows(samples))
        actor = self._features(x, samples.sequences, of_critic=False)
        shared = self.critic_torso is self.actor_torso
        critic = actor if shared else self._features(x, samples.sequences, of_critic=True)
        return self._head(actor, samples.action_mask), self._values(critic)

    def policy(self, samples: Batch) -> Distribution:
        """π(·|s) alone."""
        features = self._features(self._input(_rows(samples)), samples.sequences, of_critic=False)
        return self._head(features, samples.action_mask)

    def value(self, samples: Batch) -> Tensor:
        """V(s) `[B]` alone, in the unit of `samples.returns`."""
        return self._values(self._features(self._input(_rows(samples)), samples.sequences, of_critic=True))

    def values(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """V(s_t) and V(s_{t+1}) `[T, N]`, in the unit of the rewards.

        At a truncation, s_{t+1} is the final observation, not the first of the next episode.
        """
        T, N = rollout.rewards.shape
        K = len(rollout.final_rows)
        x = self._input(torch.cat([rollout.obs.flatten(0, 1), rollout.final_obs]) if K else rollout.obs.flatten(0, 1))
        features = _existing(self.critic_torso)(x)
        if rollout.state is not None:
            memory = self.critic_memory
            assert memory is not None
            # The last row has no entry in `starts`: if it starts an episode, its value is not used.
            starts = torch.cat([rollout.starts, torch.zeros_like(rollout.starts[:1])])
            rows, final = features[: (T + 1) * N].unflatten(0, (T + 1, N)), features[(T + 1) * N :]
            outputs, states = memory.unroll(rows, _own_state(self, rollout.state, of_critic=True), starts)
            final = memory(final, states.flatten(0, 1)[rollout.final_rows])[0]
            features = torch.cat([outputs.flatten(0, 1), final])
        values = self._restored_values(features)
        next_values = values[N : (T + 1) * N]
        if K:
            next_values = next_values.index_copy(0, rollout.final_rows, values[(T + 1) * N :])
        return values[: T * N].view(T, N), next_values.view(T, N)

    def pi(self, obs: Tensor) -> Distribution:
        """π(·|s) for observations `[B, *obs]`, each the first of an episode."""
        return self.act(obs, None, self.initial_state(len(obs)))[0]

    def v(self, obs: Tensor) -> Tensor:
        """V(s) `[B]` in the unit of the rewards, for observations `[B, *obs]`, each the first of an episode."""
        features = _existing(self.critic_torso)(self._input(obs))
        state = self.initial_state(len(obs))
        if self.critic_memory is not None and state is not None:
            features = self.critic_memory(features, _own_state(self, state, of_critic=True))[0]
        return self._restored_values(features)

    def _features(self, x: Tensor, sequences: Sequences | None, of_critic: bool) -> Tensor:
        torso, memory = (
            (_existing(self.critic_torso), self.critic_memory) if of_critic else (self.actor_torso, self.actor_memory)
        )
        features = torso(x)
        if memory is None or sequences is None:
            return features
        rows = features.unflatten(0, sequences.valid.shape)
        return memory.unroll(rows, _own_state(self, sequences.state, of_critic), sequences.starts)[0][sequences.valid]

    def _input(self, obs: Tensor) -> Tensor:
        obs = obs.to(self.actor_head.linear.weight.dtype)
        return obs if self.normalizer is None else self.normalizer(obs)

    def _head(self, features: Tensor, action_mask: Tensor | None) -> Distribution:
        return self.actor_head(features) if action_mask is None else self.actor_head(features, action_mask)

    def _restored_values(self, features: Tensor) -> Tensor:
        values = self._values(features)
        return values if self.value_normalizer is None else self.value_normalizer.restore(values)

    def _values(self, features: Tensor) -> Tensor:
        values = _existing(self.critic_head)(features).squeeze(-1)
        return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _existing(part: nn.Module | None) -> nn.Module:
    """A part of the critic, which must exist."""
    if part is None:
        raise RuntimeError("this policy was made without a critic, so it has no values")
    return part


def _state_sizes(network: ActorCritic) -> list[int]:
    memories = dict.fromkeys(m for m in (network.actor_memory, network.critic_memory) if m is not None)
    return [memory.state_size for memory in memories]


def _own_state(network: ActorCritic, state: Tensor, of_critic: bool) -> Tensor:
    return state.split(_state_sizes(network), -1)[-1 if of_critic else 0]


def _rows(samples: Batch) -> Tensor:
    """Observations `[B, *obs]`; for sequences, all rows in order."""
    return samples.obs if samples.sequences is None else samples.obs.flatten(0, 1)


def _parameters(part: nn.Module | None) -> list[nn.Parameter]:
    return [] if part is None else list(part.parameters())
