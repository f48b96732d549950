"""How far self-play in Kuhn's poker can be exploited: the last policy, and the average over training.

    python benchmarks/kuhn.py --seeds 1 2 3

Trains `configs/ppo_kuhn.yaml`. Exploitability is what a best response wins per game, exactly: 0 in an equilibrium,
0.458 for uniform play. The average weighs each policy by the probability with which its own moves reach a situation,
as the average of a repeated game does (Zinkevich et al. 2007, eq. 4). The value of the game for the first seat is
−1/18 = −0.0556.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything

from pg_lightning import RolloutDataModule
from pg_lightning.algorithms import PPO
from pg_lightning.callbacks import EvaluateEverySteps
from pg_lightning.games import SelfPlay
from pg_lightning.games.perfect import KuhnStrategy, kuhn_exploitability, kuhn_situations, kuhn_value

CONFIG = Path(__file__).parents[1] / "configs/ppo_kuhn.yaml"


def strategy_of(module: PPO) -> KuhnStrategy:
    """The probabilities of a bet in every situation."""
    obs = torch.from_numpy(kuhn_situations()).to(module.device)
    with torch.inference_mode():
        pi, _ = module.network.act(obs, torch.ones(len(obs), 2, dtype=torch.bool, device=module.device), None)
        bets = pi.log_probs[:, 1].exp()
    return KuhnStrategy(*bets.double().cpu().numpy().reshape(4, 3))


class Average(Callback):
    """The average strategy, and the exploitability along the way."""

    def __init__(self) -> None:
        self.sums, self.weights = np.zeros((4, 3)), np.zeros((4, 3))
        self.curve: list[tuple[int, float, float]] = []

    @property
    def strategy(self) -> KuhnStrategy:
        return KuhnStrategy(*(self.sums / self.weights))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: object) -> None:
        now = strategy_of(pl_module)
        reach = np.ones((4, 3))
        reach[1] = 1 - now.first  # the second move of the first seat comes after its own pass
        self.sums += reach * np.stack(now)
        self.weights += reach
        if not self.curve or pl_module.env_steps >= self.curve[-1][0] + 50_000:
            self.curve.append((pl_module.env_steps, kuhn_exploitability(now), kuhn_exploitability(self.strategy)))


def train(seed: int, steps: int | None) -> tuple[Average, KuhnStrategy]:
    """One training; the average and the last strategy."""
    config = yaml.safe_load(CONFIG.read_text())
    seed_everything(seed, verbose=False)
    settings = config["data"] | {"self_play": SelfPlay(**config["data"]["self_play"])}
    settings["total_steps"] = steps or settings["total_steps"]
    data = RolloutDataModule(**settings)
    spaces = {"observation_space": data.observation_space, "action_space": data.action_space}
    module = PPO(**spaces, total_steps=data.total_steps, **config["model"]["init_args"])
    average = Average()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_epochs=-1, **quiet, callbacks=[EvaluateEverySteps(), average],
                      enable_model_summary=False, num_sanity_val_steps=0)  # fmt: skip
    trainer.fit(module, datamodule=data)
    return average, strategy_of(module)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    uniform = KuhnStrategy(*np.full((4, 3), 0.5))
    print(f"uniform play: exploitability {kuhn_exploitability(uniform):.4f}\n")
    print("| seed | exploitability of the last policy | of the average | value for the first seat, last | average |")
    print("|--:|--:|--:|--:|--:|")
    for seed in arguments.seeds:
        average, last = train(seed, arguments.steps)
        figures = [kuhn_exploitability(x) for x in (last, average.strategy)]
        figures += [kuhn_value(x, x) for x in (last, average.strategy)]
        print(f"| {seed} | " + " | ".join(f"{x:.4f}" for x in figures) + " |", flush=True)
        for steps, now, so_far in average.curve:
            print(f"  {steps:>9,} {now:.4f} {so_far:.4f}", flush=True)


if __name__ == "__main__":
    main()
