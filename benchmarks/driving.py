"""Figures of docs/driving.md: how often a policy parks, and Stable-Baselines3's PPO on the motorway of EnvPool.

    python benchmarks/driving.py parking RUN/checkpoints/best.ckpt …
    python benchmarks/driving.py sb3 --seeds 1 2 3 --steps 200000

`parking` plays 100 episodes of each checkpoint in EnvPool and counts how they end. `sb3` has the settings of
highway-env's scripts/sb3_highway_ppo.py, with the environments and the steps of configs/ppo_highway.yaml.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np

import pg_lightning
from pg_lightning.envs import make_env, make_vector_env

EPISODES = 100


def parking(checkpoint: str) -> str:
    policy = pg_lightning.load(checkpoint)
    env = make_vector_env("parking-v0", EPISODES, {"num_threads": 1}, backend="envpool")
    groups = env.single_observation_space.groups
    seen = policy.observation_space.spaces
    obs, _ = env.reset(seed=[10**6 + n for n in range(EPISODES)])
    returns, over = np.zeros(EPISODES), np.zeros(EPISODES, bool)
    ends: Counter[str] = Counter(success=0, crash=0, time=0)
    while not over.all():
        actions, _ = policy.predict({name: obs[:, groups[name]] for name in seen})
        obs, rewards, terminated, truncated, infos = env.step(np.asarray(actions, np.float32))
        returns += rewards * ~over
        done = (terminated | truncated) & ~over
        for n in np.flatnonzero(done):
            ends["success" if infos["is_success"][n] else "crash" if infos["crashed"][n] else "time"] += 1
        over |= done
    return f"{checkpoint}: return {returns.mean():.2f}, {dict(ends)}"


def sb3(seed: int, steps: int) -> str:
    from stable_baselines3 import PPO
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv

    def make() -> Monitor:
        return Monitor(make_env("highway-fast-v0", backend="envpool"))

    settings = {"n_steps": 96, "batch_size": 64, "n_epochs": 10, "learning_rate": 5e-4, "gamma": 0.8}
    model = PPO("MlpPolicy", DummyVecEnv([make] * 8), policy_kwargs={"net_arch": [256, 256]}, seed=seed, **settings)
    model.learn(steps)
    test = DummyVecEnv([make])
    test.seed(10**6 + seed)
    mean, std = evaluate_policy(model, test, EPISODES)
    return f"seed {seed}: return {mean:.1f} ± {1.98 * std / EPISODES**0.5:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("parking", "sb3"))
    parser.add_argument("checkpoints", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=200_000)
    args = parser.parse_args()
    for one in args.checkpoints if args.what == "parking" else args.seeds:
        print(parking(one) if args.what == "parking" else sb3(one, args.steps), flush=True)


if __name__ == "__main__":
    main()
