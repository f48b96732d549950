"""Requirements of an algorithm on numbers, data and strategy, checked before any environment starts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from pg_lightning.envs import BACKENDS
from pg_lightning.errors import UserError, require
from pg_lightning.learning.backward import loss_scaler
from pg_lightning.policies import MLP, ActorCritic, NatureCNN, Policy
from pg_lightning.policies.obs_groups import GroupTorso
from pg_lightning.returns import unfinished
from pg_lightning.rollout import Rollout

LARGE = 100  # numbers of observations above which a network with the usual initial weights saturates

if TYPE_CHECKING:
    from pg_lightning.learning.module import PolicyGradientModule


def check_numbers(
    gamma: float,
    lr: float,
    critic_lr: float | None,
    max_grad_norm: float,
    micro_batch_size: int | None,
    ent_coef: float,
    vf_coef: float,
) -> None:
    """Refuses numbers that are out of range.

    Raises:
        UserError: naming the field and its bounds.
    """
    require("model.gamma", gamma, 0, 1)
    require("model.lr", lr, 0)
    require("model.critic_lr", lr if critic_lr is None else critic_lr, 0)
    require("model.max_grad_norm", max_grad_norm, 0, math.inf)
    require("model.micro_batch_size", 1 if micro_batch_size is None else micro_batch_size, 1)
    require("model.ent_coef", ent_coef, 0)
    require("model.vf_coef", vf_coef, 0)


def check_compile(compile: bool | str, network: Policy) -> None:
    """Refuses to compile what cannot be compiled, before a run that would be slower than the user expects.

    Raises:
        UserError: naming the option.
    """
    if compile is True and network.has_memory and not isinstance(network, ActorCritic):
        raise UserError("model.compile: a policy of your own with a memory is not compiled; set it to false")


def check_data(module: PolicyGradientModule, data: Any) -> None:
    """Refuses a datamodule whose rollouts the algorithm cannot use; None is any other loader.

    Raises:
        UserError: naming the field and the cure.
    """
    name = type(module).__name__
    if data is not None and module.needs_whole_episodes and not data.whole_episodes:
        raise UserError(f"data.whole_episodes: {name} learns from whole episodes; set it to true")
    if getattr(data, "overlap", False):
        if not module.corrects_policy_lag:
            raise UserError(f"data.overlap: {name} learns from rollouts of its current policy only; set it to false")
        if _is_hogwild(module):
            raise UserError("data.overlap: hogwild already overlaps collection and learning; set it to false")
    forks = {"data.overlap": getattr(data, "overlap", False), "trainer.strategy": _is_hogwild(module)}
    if (field := next(filter(forks.get, forks), None)) and not BACKENDS[getattr(data, "backend", "sync")].forks:
        raise UserError(
            f"{field}: forks a process, in which data.backend {data.backend} would wait forever; "
            "choose another back-end, or leave it out"
        )
    if module.actor.compiles and not module.learner.compiles:
        rank_zero_info(
            "model.compile: updates of a recurrent policy (model.memory) are not compiled; its rollouts are, with "
            "data.backend: device"
        )
    if module.learner.compiles and getattr(data, "rows_vary", False):
        raise UserError(
            "model.compile: it would compile anew for every number of rows, which varies with data.whole_episodes "
            "and where environments reset at the next step; set it to false, or data.backend to sync"
        )


def _is_hogwild(module: PolicyGradientModule) -> bool:
    return hasattr(module.trainer.strategy, "num_workers")


def report_unscaled(network: Policy, obs: Tensor) -> None:
    """Reports large numbers in observations `[T + 1, N, *obs]` that reach the built-in torsos as they are.

    Bytes reach `nature_cnn` divided by 255.
    """
    if not isinstance(network, ActorCritic) or network.normalizer is not None or not obs.numel():
        return
    torso = network.actor_torso
    torso = torso.torso if isinstance(torso, GroupTorso) else torso
    if not isinstance(torso, (MLP, NatureCNN)) or getattr(torso, "bytes", False):
        return
    lowest, highest = obs.aminmax()
    largest = max(-lowest.item(), highest.item())
    if largest >= LARGE:
        cure = ", or make them uint8, which it divides by 255" if isinstance(torso, NatureCNN) else ""
        rank_zero_warn(
            f"model.torso: {'nature_cnn' if cure else 'mlp'} takes observations as they are, and they reach "
            f"{largest:.3g}; set model.normalize_obs: true{cure}"
        )


def check_strategy(module: PolicyGradientModule) -> None:
    """Refuses a strategy that the algorithm does not support.

    Raises:
        UserError: naming the field and the cure.
    """
    name, strategy = type(module).__name__, module.trainer.strategy
    if not module.learner.settings.is_one and loss_scaler(module) is not None:
        raise UserError("model.critic_optimizer: 16-mixed scales the loss for one optimizer; use bf16-mixed")
    if module.is_asynchronous:
        return
    if module.trainer.world_size > 1 and not isinstance(strategy, DDPStrategy):
        raise UserError(f"trainer.strategy: {name} learns on several devices with ddp, not {type(strategy).__name__}")
    if getattr(strategy, "num_workers", 1) > 1:
        raise UserError(f"trainer.strategy: workers of hogwild would each train a {name} of their own; use ddp or A3C")


def check_rollout(module: PolicyGradientModule, rollout: Rollout) -> None:
    """Refuses an unfinished episode if the algorithm needs whole episodes; reports large numbers in the first rollout.

    Raises:
        UserError: naming the algorithm.
    """
    if module.policy_version == 0:
        report_unscaled(module.network, rollout.obs)
    if module.needs_whole_episodes and unfinished(rollout.done, rollout.valid).any():
        raise UserError(f"{type(module).__name__} learns from whole episodes, and one in a rollout does not end")


def groups_of(rollout: Rollout, name: str) -> Tensor:
    """The groups of the columns of a rollout.

    Raises:
        UserError: if it has none, or all are of one column, naming what needs them.
    """
    if rollout.groups is None:
        raise UserError(f"{name} compares completions of one prompt; set data.prompts, or choose another")
    if len(rollout.groups.unique()) == len(rollout.groups):
        raise UserError(f"data.num_completions: {name} compares completions of one prompt; set it to 2 or more")
    return rollout.groups
