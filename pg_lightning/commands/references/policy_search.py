"""Search in the space of the policy's weights θ, without a gradient: the return of whole episodes is all it uses.

The policy is the actor of `ActorCritic`, as in the algorithms. A candidate θ is measured by whole episodes, and all of
their env steps count. Hill climbing keeps a better candidate and drops a worse one. Simulated annealing (Kirkpatrick et
al. 1983) sometimes keeps a worse one too, less and less often. CMA-ES, an evolution strategy (Hansen and Ostermeier
2001), moves and scales a Gaussian towards the better half of a generation of candidates.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from pg_lightning.actor import Actor
from pg_lightning.commands.references.evaluations import Arguments, Evaluations
from pg_lightning.data import EvaluationDataset
from pg_lightning.data.datamodule import TRAIN_ENVS
from pg_lightning.envs import env_seed, make_vector_env
from pg_lightning.errors import UserError, require
from pg_lightning.learning.actor import actor_of
from pg_lightning.learning.progress import Progress
from pg_lightning.policies import ActorCritic


class Search:
    """Measures candidates until the budget is spent, and evaluates the incumbent as often as the algorithms.

    Args:
        evaluations: with the environment and the budget.
        episodes: of a candidate; its cost is the negative mean of their returns.
        network: options of `ActorCritic`.

    Attributes:
        incumbent: the weights `[D]` that the method would keep; it sets them.
        generator: of the candidates.
    """

    def __init__(self, evaluations: Evaluations, episodes: int = 1, network: Arguments | None = None) -> None:
        require("episodes", episodes, 1)
        data = evaluations.data
        self.evaluations, self.episodes = evaluations, episodes
        policy = ActorCritic(data.observation_space, data.action_space, critic=False, **(network or {}))
        self._weights = policy.parameter_groups()[0]
        self._actor = cast(Actor, actor_of(policy, Progress(data.total_steps)))
        self._env = make_vector_env(data.env_id, 1, data.env_kwargs, data.wrappers, autoreset_mode="disabled")
        self._played, self._steps = 0, 0
        self.incumbent = parameters_to_vector(self._weights).detach().numpy().astype(np.float64)
        self.generator = np.random.default_rng(evaluations.seed)

    @property
    def spent(self) -> float:
        """Share of the budget that is spent, 0 to 1 or slightly more: the last episode is played to its end."""
        return self._steps / self.evaluations.data.total_steps

    def cost(self, weights: np.ndarray) -> float:
        """The negative mean return of new episodes with weights `[D]`; first an evaluation if one is due."""
        data, seed = self.evaluations.data, self.evaluations.seed
        self._use(weights)
        seeds = [env_seed(seed, TRAIN_ENVS, 0, self._played + i) for i in range(self.episodes)]
        most = data.eval_max_episode_steps
        episodes = EvaluationDataset(self._env, self._actor, seeds, seeds[0], data.eval_deterministic, most)
        played = [(episode.episode_return.item(), int(episode.episode_length.item())) for episode in episodes]
        returns, lengths = zip(*played, strict=True)
        self._played += self.episodes
        self._steps += sum(lengths)
        if self.evaluations.is_due(self._steps):
            self._use(self.incumbent)
            self.evaluations.evaluate(self._actor, self._steps)
        return -float(np.mean(returns))

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()

    def _use(self, weights: np.ndarray) -> None:
        vector_to_parameters(torch.from_numpy(weights.astype(np.float32)), self._weights)


def annealing(search: Search, step: float = 0.05, temperature: float = 10.0) -> None:
    """Keeps a candidate θ + step · N(0, I) if it is as good, a worse one with probability exp(−Δcost / T).

    Args:
        search: measures the candidates.
        step: standard deviation of a change, the same for all weights.
        temperature: T at the start, in units of the return; it falls linearly to 0 over the budget.
    """
    require("step", step, 0)
    require("temperature", temperature, 0)
    cost = search.cost(search.incumbent)
    while search.spent < 1:
        candidate = search.incumbent + step * search.generator.standard_normal(len(search.incumbent))
        new = search.cost(candidate)
        heat = temperature * (1 - search.spent)
        if new <= cost or (heat > 0 and search.generator.random() < math.exp((cost - new) / heat)):
            search.incumbent, cost = candidate, new


def hill_climbing(search: Search, step: float = 0.05) -> None:
    """Annealing at temperature 0: keeps a candidate only if it is as good as the last one kept.

    Args:
        search: measures the candidates.
        step: standard deviation of a change, the same for all weights.
    """
    annealing(search, step, 0.0)


def cma_es(search: Search, step: float = 0.05, population: int | None = None) -> None:
    """CMA-ES of pycma with a diagonal covariance, whose cost is linear in the number of weights.

    Args:
        search: measures the candidates.
        step: initial standard deviation of the candidates.
        population: candidates in a generation; by default 4 + 3 ln D.

    Raises:
        UserError: if pycma is not installed.
    """
    try:
        import cma
    except ImportError as error:
        raise UserError('cma_es: needs pycma; pip install "pg_lightning[cma]"') from error
    options = {"CMA_diagonal": True, "seed": search.evaluations.seed + 1, "verbose": -9}  # 0 would be the clock
    if population is not None:
        options["popsize"] = population
    strategy = cma.CMAEvolutionStrategy(search.incumbent, step, options)
    while search.spent < 1:
        candidates = strategy.ask()
        costs = [search.cost(candidate) for candidate in candidates if search.spent < 1]
        if len(costs) == len(candidates):
            strategy.tell(candidates, costs)
            search.incumbent = strategy.mean


def search_weights(name: str, method: Callable[..., None], evaluations: Evaluations, arguments: Arguments) -> None:
    """Spends the budget with a search method.

    Args:
        name: of the method, for errors.
        method: takes a `Search` and arguments of its own.
        evaluations: with the environment and the budget.
        arguments: of `Search` and of the method.

    Raises:
        UserError: if an argument is unknown or out of range, or pycma is not installed.
    """
    own = dict(arguments)
    options = {key: own.pop(key) for key in ("episodes", "network") if key in own}
    for key, value in own.items():
        if not isinstance(value, int | float):
            raise UserError(f"{name}: {key} must be a number, got {value!r}")
    try:
        inspect.signature(method).bind(None, **own)
        search = Search(evaluations, **options)
    except TypeError as error:
        raise UserError(f"{name}: {error}") from error
    method(search, **own)
    search.close()
