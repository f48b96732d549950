"""Other projects' trainers with the hyperparameters of a workload: Stable-Baselines3, rsl_rl and PureJaxRL.

All have two networks of 64-64 tanh, and no entropy bonus. What differs:

- Stable-Baselines3 standardises the advantages of PPO within each minibatch, not within the rollout, uses an Adam that
  is not fused, and updates its normalisation statistics with every step, not every rollout. Its A2C uses
  `torch.optim.RMSprop` with α 0.99 and ε 1e-5, as here, and not its `RMSpropTFLike`.
- rsl_rl is stepped by our tensor environments. It clips the gradients of actor and critic separately, uses an Adam that
  is not fused, and at a time limit bootstraps from the observation before the step, not from the final one. Its check
  for NaN in every step is off. It computes its log after every update, but the log is not written.
- PureJaxRL steps gymnax's environments. It clips the loss of values, standardises advantages within each minibatch,
  takes a time limit for an end, and writes no log. It is timed in a process of its own, with one thread of XLA.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import stable_baselines3
import torch
from lightning.pytorch import seed_everything
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize
from workloads import Stopwatch, Workload

from pg_lightning.algorithms import A2C, PPO, PolicyGradientModule
from pg_lightning.envs.backends.tensor import TASKS, TensorEnvironments
from pg_lightning.errors import UserError

HAS_RSL_RL = importlib.util.find_spec("rsl_rl") is not None
GYMNAX = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0")  # environments with discrete actions, which its `ppo.py` needs
SB3_PEERS: dict[type[PolicyGradientModule], Any] = {PPO: stable_baselines3.PPO, A2C: stable_baselines3.A2C}


def run_sb3(workload: Workload, stopwatch: Stopwatch, seed: int, folder: Path) -> None:
    """With a CSV log at the same interval, and without Gymnasium's checker around each environment, as here."""

    class Laps(BaseCallback):
        """A lap ends when the next rollout starts, or training ends, after the update."""

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            if self.num_timesteps:
                stopwatch.lap(workload.rows)

        def _on_training_end(self) -> None:
            stopwatch.lap(workload.rows)

    env = make_vec_env(workload.env_id, workload.num_envs, seed=seed, env_kwargs={"disable_env_checker": True})
    scaled = {
        "norm_obs": workload.model.get("normalize_obs", False),
        "norm_reward": workload.model.get("scale_rewards", False),
    }
    if any(scaled.values()):
        env = VecNormalize(env, **scaled, gamma=workload.model["gamma"])
    model = SB3_PEERS[workload.algorithm]("MlpPolicy", env, seed=seed, device="cpu", **sb3_arguments(workload))
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(stopwatch.total_steps, Laps(), log_interval=workload.log_every)
    env.close()
    stopwatch.returns.extend(episode["r"] for episode in model.ep_info_buffer)


def sb3_arguments(workload: Workload) -> dict[str, Any]:
    """The hyperparameters with Stable-Baselines3's names."""
    model = workload.model
    arguments = {
        "n_steps": workload.num_steps,
        "learning_rate": _falling(model["lr"]) if model.get("lr_schedule") == "linear" else model["lr"],
        "policy_kwargs": {"log_std_init": model.get("log_std_init", 0.0)},
        **{name: model[name] for name in ("gamma", "gae_lambda", "vf_coef", "max_grad_norm")},
    }
    if workload.algorithm is PPO:
        arguments |= {
            "n_epochs": model["num_epochs"],
            "batch_size": workload.rows // model["num_minibatches"],
            "clip_range": model["clip_range"],
        }
    return arguments


def _falling(lr: float) -> Callable[[float], float]:
    return lambda remaining: remaining * lr


def run_rsl_rl(workload: Workload, stopwatch: Stopwatch, seed: int, folder: Path, compile: bool = False) -> None:
    """Its runner and PPO on tensor environments; `compile` is its own option, which compiles both networks."""
    from rsl_rl.env import VecEnv
    from rsl_rl.runners import OnPolicyRunner
    from rsl_rl.utils.log_writer import LogWriter
    from tensordict import TensorDict

    class Laps(LogWriter):
        """A lap ends when the update is logged."""

        def __init__(self, log_dir: str) -> None:
            """There is no file."""

        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            if tag == "Perf/total_fps":
                stopwatch.lap(workload.rows)

    class Adapter(VecEnv):
        def __init__(self, env: TensorEnvironments) -> None:
            self.env, self.num_envs, self.device = env, env.num_envs, env.device
            self.num_actions, self.max_episode_length = env.single_action_space.shape[0], env.limit
            self.low, self.high = (
                torch.from_numpy(x) for x in (env.single_action_space.low, env.single_action_space.high)
            )
            self.cfg: dict[str, Any] = {}
            self.obs = env.reset(seed)[0]

        @property
        def episode_length_buf(self) -> torch.Tensor:
            return self.env.carry[1]

        def get_observations(self) -> TensorDict:
            return TensorDict({"policy": self.obs}, batch_size=[self.num_envs])

        def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
            step = self.env.step(actions.clamp(self.low, self.high))
            self.obs = step.obs
            return self.get_observations(), step.rewards, step.done, {"time_outs": step.truncated}

    seed_everything(seed, verbose=False)
    torch.compiler.reset()
    env = TensorEnvironments(workload.env_id, workload.num_envs)
    settings = rsl_rl_settings(workload) | {"logger": {"class_name": Laps}}
    if compile:
        settings["torch_compile_mode"] = "default"
    runner = OnPolicyRunner(Adapter(env), settings, str(folder), device="cpu")
    runner.learn(stopwatch.total_steps // workload.rows)
    stopwatch.returns.extend(runner.logger.rewbuffer)


def rsl_rl_settings(workload: Workload) -> dict[str, Any]:
    """The hyperparameters with rsl_rl's names."""
    model = workload.model
    network = {"class_name": "MLPModel", "hidden_dims": [64, 64], "activation": "tanh"}
    gaussian = {"class_name": "GaussianDistribution", "init_std": 1.0, "std_type": "log"}
    return {
        "num_steps_per_env": workload.num_steps,
        "save_interval": 10**9,
        "check_for_nan": False,
        "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
        "actor": network | {"distribution_cfg": gaussian},
        "critic": network,
        "algorithm": {
            "class_name": "PPO",
            "num_learning_epochs": model["num_epochs"],
            "num_mini_batches": model["num_minibatches"],
            "clip_param": model["clip_range"],
            "gamma": model["gamma"],
            "lam": model["gae_lambda"],
            "value_loss_coef": model["vf_coef"],
            "entropy_coef": 0.0,
            "learning_rate": model["lr"],
            "max_grad_norm": model["max_grad_norm"],
            "use_clipped_value_loss": False,
            "schedule": "fixed",
        },
    }


def run_purejaxrl(
    workload: Workload, stopwatch: Stopwatch, seed: int, folder: Path, source: Path, interpreter: str
) -> None:
    """Its `ppo.py` from the folder `source`, by another Python interpreter.

    Raises:
        UserError: if it fails.
    """
    model = workload.model
    updates = -(-workload.steps // workload.rows)
    config = {
        "ENV_NAME": workload.env_id,
        "NUM_ENVS": workload.num_envs,
        "NUM_STEPS": workload.num_steps,
        "TOTAL_TIMESTEPS": updates * workload.rows,
        "UPDATE_EPOCHS": model["num_epochs"],
        "NUM_MINIBATCHES": model["num_minibatches"],
        "LR": model["lr"],
        "GAMMA": model["gamma"],
        "GAE_LAMBDA": model["gae_lambda"],
        "CLIP_EPS": model["clip_range"],
        "VF_COEF": 2 * model["vf_coef"],  # its loss of values has a factor of a half
        "MAX_GRAD_NORM": model["max_grad_norm"],
        "ENT_COEF": 0.0,
        "ACTIVATION": "tanh",
        "ANNEAL_LR": False,
        "DEBUG": False,
    }
    script = Path(__file__).parent / "purejaxrl.py"
    command = [interpreter, str(script), str(source.resolve()), json.dumps(config), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"--purejaxrl: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    stopwatch.record(updates * workload.rows, found["seconds"], found["return_mean"])


def sb3_can_run(workload: Workload) -> bool:
    return workload.algorithm in SB3_PEERS


def rsl_rl_can_run(workload: Workload) -> bool:
    """Its actions are Gaussian, and here its environments are ours."""
    is_continuous = workload.env_id in TASKS and isinstance(_action_space(workload), gymnasium.spaces.Box)
    return workload.algorithm is PPO and is_continuous


def purejaxrl_can_run(workload: Workload) -> bool:
    return workload.algorithm is PPO and workload.env_id in GYMNAX


def _action_space(workload: Workload) -> gymnasium.Space[Any]:
    env = gymnasium.make(workload.env_id)
    env.close()
    return env.action_space
