"""Small simulators with the interfaces of real ones, written from what their sources and documents say.

All play the same pole on a cart: `Pole`. They differ in what a simulator may do: return dicts of groups, write into the
same buffers, lose the last observation of an episode or give it under some name, return four values or five.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

LIMIT = 12
OBS = spaces.Box(-np.inf, np.inf, (4,), np.float32)
PRIVILEGED = spaces.Box(-np.inf, np.inf, (2,), np.float32)
FORCE = spaces.Box(-1.0, 1.0, (1,), np.float32)


class Pole:
    """N linearised poles on carts. A pole falls at 0.2 rad; an episode is cut after `limit` steps.

    Attributes:
        made: instances since the start of the process, of all simulators of this module.
        latest: the last of them.
        actions: of every step.
        firsts: first states of episodes that a step began, by the number of steps before.
    """

    made: ClassVar[int] = 0
    latest: ClassVar[Any] = None

    def __init__(self, num_envs: int, limit: int = LIMIT) -> None:
        Pole.made += 1
        Pole.latest = self
        self.num_envs, self.limit = num_envs, limit
        self.generator = torch.Generator()
        self.state = torch.zeros(num_envs, 4)
        self.steps = torch.zeros(num_envs, dtype=torch.int64)
        self.actions: list[Tensor] = []
        self.firsts: dict[int, Tensor] = {}
        self.is_closed = False

    def first(self) -> Tensor:
        return 0.3 * torch.rand(self.num_envs, 4, generator=self.generator) - 0.15

    def restart(self, seed: int | None = None) -> None:
        if seed is not None:
            self.generator.manual_seed(seed)
        self.state.copy_(self.first())
        self.steps.zero_()

    def move(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rewards, terminated and truncated; the episodes that ended are not reset yet."""
        assert isinstance(actions, Tensor)
        assert actions.shape == (self.num_envs, 1)
        assert not self.is_closed
        x, v, angle, w = self.state.unbind(1)
        self.actions.append(actions.clone())
        force = actions[:, 0].clamp(-1.0, 1.0)
        actions.fill_(7.0)  # the caller's tensor, if it did not copy
        moved = torch.stack([x + 0.02 * v, v + 0.2 * force, angle + 0.02 * w, w + 0.3 * angle - 0.3 * force], 1)
        self.state.copy_(moved)
        self.steps += 1
        return 1.0 - moved[:, 0].abs(), moved[:, 2].abs() > 0.2, self.steps >= self.limit

    def begin(self, which: Tensor) -> None:
        first = self.first()
        self.firsts[len(self.actions) - 1] = first
        self.state.copy_(torch.where(which[:, None], first, self.state))
        self.steps.masked_fill_(which, 0)


def privileged(state: Tensor) -> Tensor:
    """What only the critic of a robot sees."""
    return state[:, 1:3] * 10.0


class IsaacLab(gym.Env):
    """As Isaac Lab's `ManagerBasedRLEnv`: no `VectorEnv`, groups by name, buffers that every step writes into.

    Args:
        num_envs: N.
        gives_final_obs: as with `cfg.compute_final_obs`: `extras["final_obs"]` in steps with a reset, and only there.
        has_critic: whether there is a group `critic`, which the spaces of a `DirectRLEnv` do not list.
        mode: `same_step` or `disabled`.
    """

    is_vector_env = True
    metadata: ClassVar[dict[str, Any]] = {"render_modes": [None]}

    def __init__(
        self,
        num_envs: int = 4,
        gives_final_obs: bool = False,
        has_critic: bool = True,
        mode: str = "same_step",
        limit: int = LIMIT,
    ) -> None:
        self.pole = Pole(num_envs, limit)
        self.num_envs, self.device = num_envs, "cpu"
        self.gives_final_obs, self.has_critic = gives_final_obs, has_critic
        self.cfg = SimpleNamespace(compute_final_obs=gives_final_obs, autoreset_mode=mode)
        self.single_observation_space = spaces.Dict({"policy": OBS})
        self.single_action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.obs_buf = {"policy": torch.zeros(num_envs, 4)} | (
            {"critic": torch.zeros(num_envs, 2)} if has_critic else {}
        )
        self.reward_buf = torch.zeros(num_envs)
        self.reset_buf = torch.zeros(num_envs, dtype=torch.bool)
        self.reset_terminated, self.reset_time_outs = self.reset_buf.clone(), self.reset_buf.clone()
        self.extras: dict[str, Any] = {"log": {}}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        self.pole.restart(seed)
        self.reset_buf[:] = False  # made in the last step
        self._compute()
        return self.obs_buf, self.extras

    def step(self, action: Tensor) -> Any:
        rewards, terminated, time_outs = self.pole.move(action)
        self.reward_buf.copy_(rewards)
        self.reset_terminated.copy_(terminated)
        self.reset_time_outs.copy_(time_outs)
        self.reset_buf = terminated | time_outs
        self.extras.pop("final_obs", None)
        ids = self.reset_buf.nonzero().squeeze(-1)
        if len(ids) > 0:
            if self.gives_final_obs:
                self._compute()
                self.extras["final_obs"] = {name: group.clone() for name, group in self.obs_buf.items()}
            self.pole.begin(self.reset_buf)
        self._compute()
        return self.obs_buf, self.reward_buf, self.reset_terminated, self.reset_time_outs, self.extras

    def close(self) -> None:
        self.pole.is_closed = True

    def _compute(self) -> None:
        self.obs_buf["policy"].copy_(self.pole.state)
        if self.has_critic:
            self.obs_buf["critic"].copy_(privileged(self.pole.state))


gym.register("FakeIsaac-v0", entry_point=IsaacLab)


class MjlabBox(SimpleNamespace):
    """mjlab's own classes of spaces have the attributes of Gymnasium's."""


class Mjlab:
    """As mjlab's `ManagerBasedRlEnv`: no class of Gymnasium, groups `actor` and `critic`, last observations lost."""

    is_vector_env = True
    metadata: ClassVar[dict[str, Any]] = {"render_modes": [None]}

    def __init__(self, num_envs: int = 4, auto_reset: bool = True, limit: int = LIMIT) -> None:
        self.pole, self._count = Pole(num_envs, limit), num_envs
        self.cfg = SimpleNamespace(auto_reset=auto_reset)
        box = MjlabBox(shape=(4,), low=-np.inf, high=np.inf, dtype="float32")
        self.single_observation_space = SimpleNamespace(spaces={"actor": box})
        self.single_action_space = MjlabBox(shape=(1,), low=-1.0, high=1.0, dtype="float32")
        self.extras: dict[str, Any] = {}

    @property
    def num_envs(self) -> int:
        return self._count

    @property
    def unwrapped(self) -> Mjlab:
        return self

    def reset(self, *, seed: int | None = None, env_ids: Any = None, options: Any = None) -> Any:
        self.pole.restart(seed)
        return self._obs(), self.extras

    def step(self, action: Tensor) -> Any:
        rewards, terminated, time_outs = self.pole.move(action)
        self.pole.begin(terminated | time_outs)
        return self._obs(), rewards, terminated, time_outs, self.extras

    def close(self) -> None:
        self.pole.is_closed = True

    def _obs(self) -> dict[str, Tensor]:
        return {"actor": self.pole.state.clone(), "critic": privileged(self.pole.state)}


class ManiSkill(VectorEnv):
    """As `ManiSkillVectorEnv`: a `VectorEnv` without metadata, whose `unwrapped` is the inner environment.

    In a step with a reset, the infos are those of the reset, with `final_observation` of all environments.
    """

    def __init__(
        self, env: str = "Pole", num_envs: int = 1, auto_reset: bool = True, nested: bool = False, limit: int = LIMIT
    ) -> None:
        self.pole, self.auto_reset, self.nested = Pole(num_envs, limit), auto_reset, nested
        self.num_envs = num_envs
        parts = {"extra": PRIVILEGED, "agent": spaces.Dict({"qvel": PRIVILEGED, "qpos": PRIVILEGED})}
        self.single_observation_space = spaces.Dict(parts) if nested else OBS
        self.single_action_space = FORCE
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    @property
    def unwrapped(self) -> Any:
        return SimpleNamespace(num_envs=self.num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if options is not None and "env_idx" in options:
            which = torch.zeros(self.num_envs, dtype=torch.bool)
            which[options["env_idx"]] = True
            self.pole.begin(which)
        else:
            self.pole.restart(seed)
        return self._obs(), {"reconfigure": False}

    def step(self, actions: Any) -> Any:
        rewards, terminations, truncations = self.pole.move(actions)
        obs, infos = self._obs(), {"elapsed_steps": self.pole.steps.clone(), "success": terminations}
        dones = torch.logical_or(terminations, truncations)
        if dones.any() and self.auto_reset:
            final_obs, final_info = obs, infos
            obs, infos = self.reset(options={"env_idx": torch.arange(self.num_envs)[dones]})
            infos |= {"final_observation": final_obs, "final_info": final_info}
            infos |= {"_final_info": dones, "_final_observation": dones, "_elapsed_steps": dones}
        return obs, rewards, terminations, truncations, infos

    def close_extras(self, **kwargs: Any) -> None:
        self.pole.is_closed = True

    def _obs(self) -> Any:
        state = self.pole.state.clone()
        if not self.nested:
            return state
        return {"extra": privileged(state), "agent": {"qvel": state[:, 2:], "qpos": state[:, :2]}}


class OwnVectorEnv(VectorEnv):
    """A user's `VectorEnv` of tensors, in one of two autoreset modes, in float32, float64 or as images of uint8."""

    def __init__(
        self,
        num_envs: int = 4,
        mode: str = "next_step",
        dtype: str = "float32",
        says_mode: bool = True,
        limit: int = LIMIT,
    ) -> None:
        self.pole, self.mode, self.dtype = Pole(num_envs, limit), mode, dtype
        self.num_envs = num_envs
        if says_mode:
            modes = {"next_step": AutoresetMode.NEXT_STEP, "same_step": AutoresetMode.SAME_STEP}
            self.metadata = {"autoreset_mode": modes.get(mode, AutoresetMode.DISABLED)}
        bounds: Any = {"uint8": (0, 255, (2, 2), np.uint8), "float64": (-4.0, 4.0, (4,), np.float64)}
        self.single_observation_space = spaces.Box(*bounds[dtype]) if dtype in bounds else OBS
        self.single_action_space = FORCE
        self.ended = torch.zeros(num_envs, dtype=torch.bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.pole.restart(seed)
        self.ended[:] = False
        return self._obs(), {}

    def step(self, actions: Any) -> Any:
        infos: dict[str, Any] = {}
        if self.mode == "next_step":
            waiting, before, steps = self.ended.clone(), self.pole.state.clone(), self.pole.steps.clone()
            rewards, terminated, truncated = self.pole.move(actions)
            self.pole.state.copy_(torch.where(waiting[:, None], before, self.pole.state))
            self.pole.steps.copy_(torch.where(waiting, steps, self.pole.steps))
            self.pole.begin(waiting)
            rewards = rewards.masked_fill(waiting, 0.0)
            terminated, truncated = terminated & ~waiting, truncated & ~waiting
            self.ended.copy_(terminated | truncated)
        else:
            rewards, terminated, truncated = self.pole.move(actions)
            infos["final_obs"] = self._obs().clone()
            self.pole.begin(terminated | truncated)
        return self._obs(), rewards.to(self._float), terminated, truncated, infos

    def close_extras(self, **kwargs: Any) -> None:
        self.pole.is_closed = True

    @property
    def _float(self) -> torch.dtype:
        return torch.float64 if self.dtype == "float64" else torch.float32

    def _obs(self) -> Tensor:
        if self.dtype == "uint8":
            return (self.pole.state * 500.0 + 128.0).clamp(0, 255).to(torch.uint8).reshape(-1, 2, 2)
        return self.pole.state.to(self._float)


gym.register("OwnTensors-v0", vector_entry_point=OwnVectorEnv)


class Groups:
    """As much of a `TensorDict` as is needed: not a `Mapping`, and iterated over it gives rows."""

    def __init__(self, groups: Mapping[str, Tensor]) -> None:
        self._groups = dict(groups)

    def keys(self) -> Any:
        return self._groups.keys()

    def __getitem__(self, name: str) -> Tensor:
        return self._groups[name]

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("rows, not names")


class Genesis:
    """As the example `Go2Env` of Genesis: rsl_rl's four values, in buffers, float time-outs, no seed, no `close`.

    A time-out is also set where the pole fell in the same step.
    """

    def __init__(self, num_envs: int, groups: bool = True, limit: int = LIMIT) -> None:
        self.pole, self.groups = Pole(num_envs, limit), groups
        self.num_envs, self.num_actions, self.device = num_envs, 1, torch.device("cpu")
        self.max_episode_length = limit
        self.rew_buf, self.reset_buf = torch.zeros(num_envs), torch.ones(num_envs, dtype=torch.int32)
        self.extras: dict[str, Any] = {"observations": {}}

    @property
    def episode_length_buf(self) -> Tensor:
        return self.pole.steps

    def step(self, actions: Tensor) -> Any:
        rewards, terminated, time_outs = self.pole.move(actions)
        self.rew_buf[:] = rewards
        self.reset_buf = terminated | time_outs
        self.extras["time_outs"] = time_outs.float()
        self.pole.begin(self.reset_buf)
        return self._obs(), self.rew_buf, self.reset_buf, self.extras

    def get_observations(self) -> Any:
        return self._obs(), self.extras

    def reset(self) -> Any:
        self.reset_buf[:] = True
        self.pole.restart()
        return self._obs(), None

    def _obs(self) -> Any:
        return Groups({"policy": self.pole.state}) if self.groups else self.pole.state


class Playground:
    """As `RSLRLBraxWrapper`: `get_observations` starts new episodes, `seed` is a number, new tensors in every step.

    Every reset has the same first states; `dones` are float, as are the time-outs, which are not set where terminated.
    """

    def __init__(self, num_envs: int, seed: int = 3, limit: int = LIMIT) -> None:
        self.pole, self.seed = Pole(num_envs, limit), seed
        self.num_envs, self.num_actions, self.max_episode_length = num_envs, 1, limit
        self.resets = 0

    def step(self, action: Tensor) -> Any:
        rewards, terminated, time_outs = self.pole.move(action)
        done = terminated | time_outs
        self.pole.begin(done)
        info = {"time_outs": (time_outs & ~terminated).float(), "log": {"reward": rewards.mean().item()}}
        return self._obs(), rewards.clone(), done.float(), info

    def reset(self) -> Any:
        self.resets += 1
        self.pole.restart(self.seed)
        return self._obs()

    def get_observations(self) -> Any:
        return self.reset()

    def _obs(self) -> Groups:
        return Groups({"state": self.pole.state.clone(), "privileged_state": privileged(self.pole.state)})


class RslRl(Genesis):
    """rsl_rl's interface with a method `seed`, integer dones, and time-outs left over from earlier steps."""

    def seed(self, seed: int) -> int:
        self.pole.generator.manual_seed(seed)
        return seed

    def step(self, actions: Tensor) -> Any:
        obs, rewards, dones, extras = super().step(actions)
        left_over = getattr(self, "left_over", torch.zeros(self.num_envs))
        self.left_over = torch.maximum(left_over * (dones == 0), extras["time_outs"])
        return obs, rewards, dones.long(), {"time_outs": self.left_over.bool()}


def make_isaac(num_envs: int, **kwargs: Any) -> IsaacLab:
    """A function that returns an environment, as users write it for Isaac Lab."""
    return IsaacLab(num_envs, **kwargs)


def eight_poles() -> IsaacLab:
    """A simulator that decides itself how many environments it has."""
    return IsaacLab(8)


def numpy_poles(num_envs: int) -> VectorEnv:
    """What returns arrays after all."""
    return gym.make_vec("CartPole-v1", num_envs, vectorization_mode="vector_entry_point")


def one_pole() -> gym.Env:
    """A single environment."""
    return gym.make("CartPole-v1")


class Faulty(IsaacLab):
    """Returns from a step what a simulator should not.

    Args:
        fault: what it does wrong, or `columns`, which is unusual but clear.
        num_envs: N.
        limit: see `Pole`.
    """

    def __init__(self, fault: str, num_envs: int, limit: int = LIMIT) -> None:
        super().__init__(num_envs, gives_final_obs=True, limit=limit)
        self.fault = fault
        if fault == "no action space":
            self.single_action_space = None

    def step(self, action: Tensor) -> Any:
        obs, rewards, terminated, truncated, extras = super().step(action)
        last = {"policy": torch.zeros(self.num_envs - 1, 4), "critic": torch.zeros(self.num_envs - 1, 2)}
        faults = {
            "columns": (obs, rewards[:, None], terminated[:, None], truncated[:, None], extras),
            "four values": (obs, rewards, terminated | truncated, extras),
            "array": (obs, rewards.numpy(), terminated, truncated, extras),
            "few flags": (obs, rewards, terminated[1:], truncated, extras),
            "few final": (obs, rewards, terminated, truncated, {"final_obs": last}),
            "odd final": (obs, rewards, terminated, truncated, {"final_obs": np.zeros(self.num_envs, object)}),
        }
        return faults.get(self.fault, (obs, rewards, terminated, truncated, extras))
