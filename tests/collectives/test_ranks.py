"""Ranks: two processes that learn from the halves of a rollout end as one does that learns from the whole.

Both processes are forked once and go through all the cases, as torchrun would start them; each case is a `Trainer.fit`.
"""

import multiprocessing
from dataclasses import fields, replace
from datetime import timedelta

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from rollouts import BOX, DISCRETE, GROUPS, OBSERVATIONS, make_rollout, timesteps_of
from torch import distributed
from torch.utils.data import DataLoader, Dataset
from two_ranks import of, outcomes_of

from pg_lightning import (
    A2C,
    PPO,
    REINFORCE,
    TRPO,
    OneStepActorCritic,
    PolicyGradientModule,
    REINFORCEBaseline,
    Rollout,
    VTrace,
)
from pg_lightning.collectives import Alone, shared_memory
from pg_lightning.data import RolloutDataModule
from pg_lightning.errors import UserError
from pg_lightning.learning import targets
from pg_lightning.statistics import standardize

pytestmark = [
    pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the two processes are forked"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*IterableDataset.* has `__len__` defined"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]

T, N = 6, 8  # of the whole; each of the two ranks has half of the environments
EVEN, UNEVEN, EMPTY = range(3)  # all rows valid; some not; none of rank 1
NORMALIZED = {"normalize_obs": True, "scale_rewards": True}
ALL_NORMALIZED = {**NORMALIZED, "normalize_values": True, "normalize_advantage": True}
RAW = {"normalize_advantage": False}
ONE = {"num_epochs": 3, "num_minibatches": 1}
TWO = {"num_epochs": 2, "num_minibatches": 2}
RAGGED, PLAIN = (UNEVEN, EVEN, EMPTY, UNEVEN), (EVEN, EVEN, EVEN)

CASES = {
    "REINFORCE": (REINFORCE, DISCRETE, RAGGED, {}),
    "REINFORCE, raw returns": (REINFORCE, BOX, RAGGED, {**RAW, **NORMALIZED}),
    "REINFORCE, baseline from the batch": (REINFORCE, DISCRETE, RAGGED, {**RAW, "baseline": "batch_mean"}),
    "REINFORCE, the same standardised": (REINFORCE, DISCRETE, RAGGED, {"baseline": "batch_mean"}),
    "REINFORCE, moving average": (REINFORCE, DISCRETE, RAGGED, {**RAW, "baseline": "moving_average"}),
    "REINFORCE, whole returns": (REINFORCE, BOX, RAGGED, {"causal": False}),
    "REINFORCE, discounted": (REINFORCE, DISCRETE, RAGGED, {"discount_objective": True}),
    "REINFORCE with a critic": (REINFORCEBaseline, DISCRETE, RAGGED, {"discount_objective": True}),
    "REINFORCE with a critic, normalised": (REINFORCEBaseline, BOX, RAGGED, ALL_NORMALIZED),
    "one step": (OneStepActorCritic, DISCRETE, RAGGED, {"ent_coef": 0.1}),
    "one step, normalised": (OneStepActorCritic, BOX, RAGGED, ALL_NORMALIZED),
    "A2C": (A2C, DISCRETE, RAGGED, {}),
    "A2C, normalised": (A2C, BOX, RAGGED, {**ALL_NORMALIZED, "lr_schedule": "linear"}),
    "A2C, memory": (A2C, DISCRETE, RAGGED, {"memory": "lstm", "memory_size": 3, "gae_lambda": 0.9}),
    "PPO": (PPO, DISCRETE, RAGGED, ONE),
    "PPO, normalised": (PPO, BOX, RAGGED, {**ONE, **ALL_NORMALIZED, "clip_range_vf": 0.2}),
    "PPO, values normalised": (PPO, DISCRETE, RAGGED, {**ONE, "normalize_values": True, "shared_torso": True}),
    "PPO, minibatches": (PPO, DISCRETE, PLAIN, {**TWO, **ALL_NORMALIZED, "shared_torso": True}),
    "PPO, memory": (PPO, BOX, PLAIN, {**TWO, "memory": "lstm", "memory_size": 3}),
    "PPO, shared memory": (PPO, DISCRETE, RAGGED, {**ONE, "memory": "gru", "memory_size": 3, "shared_torso": True}),
    "PPO, early stop": (PPO, DISCRETE, RAGGED, {**ONE, "num_epochs": 9, "target_kl": 3e-3}),
    "PPO, two optimizers": (PPO, DISCRETE, RAGGED, {**ONE, "critic_optimizer": "rmsprop", "critic_lr": 0.02}),
    "PPO, tensor by tensor": (PPO, BOX, RAGGED, {**ONE, "optimizer": "torch.optim.Adafactor"}),
    "PPO, micro-batches": (PPO, DISCRETE, RAGGED, {**ONE, "micro_batch_size": 5}),
    "A2C, memory, micro-batches": (
        A2C,
        DISCRETE,
        RAGGED,
        {"memory": "gru", "memory_size": 3, "gae_lambda": 0.9, "micro_batch_size": 7},
    ),
    "TRPO": (TRPO, DISCRETE, RAGGED, {"num_epochs": 2, "num_minibatches": 1}),
    "TRPO, normalised": (TRPO, BOX, RAGGED, {**NORMALIZED, "num_epochs": 2, "num_minibatches": 1}),
    "V-trace": (VTrace, DISCRETE, RAGGED, {"gae_lambda": 0.9}),
    "V-trace, normalised": (VTrace, BOX, RAGGED, ALL_NORMALIZED),
    "PPO, groups": (PPO, BOX, RAGGED, {**ONE, **ALL_NORMALIZED, "observation_space": GROUPS}),
    "PPO, groups and memory": (
        PPO,
        DISCRETE,
        PLAIN,
        {**TWO, "memory": "gru", "memory_size": 3, "observation_space": GROUPS},
    ),
    "PPO, penalty": (PPO, DISCRETE, RAGGED, {**ONE, "kl_penalty": 0.3, "target_kl": 3e-3}),
}
TENSORS = {"num_envs": 2, "num_steps": 8, "total_steps": 128, "eval_episodes": 1}
PER_RANK = (A2C, DISCRETE, PLAIN, {"normalize_advantage": "per_rank"})


class Rollouts(Dataset):
    """One rollout for each entry of `kinds`, of the whole or of one rank's half of it."""

    def __init__(self, algorithm, actions, kinds, state_size, rank):
        self.rollouts = [make_whole(algorithm, actions, kind, i, state_size) for i, kind in enumerate(kinds)]
        if rank is not None:
            self.rollouts = [half(rollout, rank) for rollout in self.rollouts]

    def __len__(self):
        return len(self.rollouts)

    def __getitem__(self, index):
        return self.rollouts[index]


def make_whole(algorithm, actions, kind, index, state_size):
    """T rows of N environments in double precision, whose episodes all end for who needs that."""
    rollout = make_rollout(actions=actions, T=T, N=N, seed=index, next_step=kind != EVEN)
    rollout.valid[0, N // 2 :] = kind == EVEN  # the first rows of rank 1
    if kind == EMPTY:
        rollout.valid[:, N // 2 :] = False
    rollout.terminated &= rollout.valid
    rollout.truncated &= rollout.valid
    if algorithm.needs_whole_episodes:
        rollout.terminated[-1] |= rollout.valid[-1]
    is_final = (rollout.truncated & ~rollout.terminated).flatten() & (kind == EVEN)
    final_rows = is_final.nonzero()[:, 0]
    generator = torch.Generator().manual_seed(index)
    return replace(
        rollout,
        obs=rollout.obs.double(),
        rewards=rollout.rewards.double() * rollout.valid,
        actions=rollout.actions if actions is DISCRETE else rollout.actions.double(),
        timesteps=timesteps_of(rollout.done, rollout.valid),
        final_obs=torch.randn(len(final_rows), *OBSERVATIONS.shape, generator=generator, dtype=torch.float64),
        final_rows=final_rows,
        env_steps=int(rollout.valid.sum()),
        policy_version=index,
        state=torch.randn(N, state_size, generator=generator, dtype=torch.float64) if state_size else None,
    )


def half(rollout, rank):
    """The environments of one rank."""
    chosen = torch.arange(N // 2) + rank * N // 2
    names = ("obs", "actions", "rewards", "terminated", "truncated", "valid", "timesteps")
    t, n = rollout.final_rows // N, rollout.final_rows % N
    ours = torch.isin(n, chosen)
    valid = rollout.valid[:, chosen]
    return replace(
        rollout,
        **{name: getattr(rollout, name)[:, chosen] for name in names},
        final_obs=rollout.final_obs[ours],
        final_rows=(t * (N // 2) + n - rank * N // 2)[ours],
        env_steps=int(valid.sum()),
        state=None if rollout.state is None else rollout.state[chosen],
    )


def order(n, generator=None):
    """In place of a random permutation, one that deals the whole out as it does the halves."""
    environments = torch.arange(n)
    return environments.view(2, 2, -1).transpose(0, 1).flatten() if n == N else environments


def trainer_of(rank, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    ranks = {} if rank is None else {"devices": 2, "strategy": DDPStrategy(timeout=timedelta(seconds=60))}
    plain = {
        "accelerator": "cpu",
        "enable_model_summary": False,
        "max_epochs": 1,
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,
    }
    return Trainer(**{**quiet, **plain, **ranks, **options})


def learn(algorithm, actions, kinds, options, rank=None):
    """Weights, statistics and metrics after one update per rollout, in double precision."""
    torch.manual_seed(7)
    spaces = {"observation_space": OBSERVATIONS, "action_space": actions}
    module = algorithm(**{**spaces, "hidden_sizes": [4], "lr": 0.01, "total_steps": 10**4, **options})
    with torch.no_grad():
        for p in module.network.parameters():
            p.copy_(0.5 * torch.randn(p.shape))
    state = module.network.initial_state(1)
    rollouts = Rollouts(algorithm, actions, kinds, 0 if state is None else state.shape[1], rank)
    trainer = trainer_of(rank, precision="64-true")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randperm", order)
        trainer.fit(module, DataLoader(rollouts, batch_size=None))
    return outcome(module, trainer)


def outcome(module, trainer):
    assert module.policy_version > 0
    metrics = {name: np.array(float(value)) for name, value in trainer.callback_metrics.items()}
    return weights_of(module), metrics


def weights_of(module):
    return {name: x.detach().double().numpy() for name, x in module.state_dict().items()}


def play(rank, env_id="CartPole-v1", algorithm=PPO, model=None, **data):
    """The same from environments, and the first rollout's observations."""
    torch.manual_seed(7)
    small = {"num_envs": 2, "num_steps": 8, "total_steps": 64, "eval_episodes": 2}
    rollouts = RolloutDataModule(env_id, **{**small, **data})
    seen = []

    spaces = {"observation_space": rollouts.observation_space, "action_space": rollouts.action_space}
    module = watched(algorithm, seen)(**spaces, total_steps=rollouts.total_steps, hidden_sizes=[4], **(model or {}))
    trainer = trainer_of(rank, limit_val_batches=0, max_epochs=-1, log_every_n_steps=10)
    trainer.fit(module, rollouts)
    weights, metrics = outcome(module, trainer)
    return weights, metrics, module.env_steps, [rollout.env_steps for rollout in seen], seen[0].obs.numpy()


class Guided(PolicyGradientModule):
    """Several epochs, as the guide to an algorithm of one's own has them."""

    def __init__(self, num_epochs=2, num_minibatches=4, **kwargs):
        super().__init__(**kwargs)
        self.num_epochs, self.num_minibatches = num_epochs, num_minibatches

    def update(self, rollout):
        batch = self.targets(rollout, gae_lambda=0.95, normalize_advantage=True)
        for minibatch in self.learner.minibatches(batch, self.num_epochs, self.num_minibatches):
            self.learner.step(self.loss, minibatch)
        return self.learner.mean_stats()


# Fewer rows than minibatches on some ranks; no rows; rollouts of unequal length; a process that plays ahead.
ENVIRONMENTS = {
    "few rows": {
        "num_steps": 1,
        "total_steps": 200,
        "autoreset_mode": "next_step",
        "num_envs": 4,
        "model": {"num_minibatches": 4},
    },
    "few rows, an algorithm of one's own": {
        "algorithm": Guided,
        "num_steps": 1,
        "total_steps": 200,
        "autoreset_mode": "next_step",
        "num_envs": 4,
    },
    "whole episodes": {"algorithm": REINFORCEBaseline, "num_steps": 1, "whole_episodes": True},
    "minibatches of whole episodes": {"num_steps": 1, "whole_episodes": True, "model": {"num_minibatches": 7}},
    "memory": {"autoreset_mode": "next_step", "model": {"memory": "gru", "memory_size": 3, "num_minibatches": 2}},
    "overlap": {"overlap": True, "model": {"num_minibatches": 2, "target_kl": 0.01, "normalize_values": True}},
    "one row": {"algorithm": OneStepActorCritic, "num_steps": 1, "num_envs": 1, "autoreset_mode": "next_step"},
}


def watched(algorithm, seen):
    """An algorithm that adds every rollout to a list."""

    class Watched(algorithm):
        def training_step(self, rollout, batch_idx):
            seen.append(rollout)
            super().training_step(rollout, batch_idx)

    return Watched


def play_tensors(rank):
    """Weights after updates on tensor environments of this rank, and what they did."""
    data = RolloutDataModule("Pendulum-v1", backend="device", env_kwargs={"max_episode_steps": 5}, **TENSORS)
    module, seen = learner_of_tensors(data), []
    module.__class__ = watched(PPO, seen)
    trainer_of(rank, precision="64-true", limit_val_batches=0, max_epochs=-1).fit(module, data)
    columns = [{f.name: getattr(rollout, f.name) for f in fields(rollout)} for rollout in seen]
    return weights_of(module), [
        {name: x.numpy() if torch.is_tensor(x) else x for name, x in rollout.items()} for rollout in columns
    ]


def learner_of_tensors(data):
    torch.manual_seed(7)
    spaces = {"observation_space": data.observation_space, "action_space": data.action_space}
    return PPO(**spaces, hidden_sizes=[4], lr=0.01, total_steps=data.total_steps, **{**ONE, **ALL_NORMALIZED})


def union(rollouts):
    """One rollout of the environments of all ranks."""
    first, n, count = rollouts[0], rollouts[0]["rewards"].shape[1], len(rollouts)
    joined = {}
    for name, value in first.items():
        if name in ("final_obs", "final_rows", "episode_returns", "episode_lengths"):
            rows = [(x["final_rows"] // n) * n * count + r * n + x["final_rows"] % n for r, x in enumerate(rollouts)]
            joined[name] = np.concatenate(rows if name == "final_rows" else [x[name] for x in rollouts])
        elif isinstance(value, np.ndarray):
            joined[name] = np.concatenate([x[name] for x in rollouts], 1)
        else:
            joined[name] = count * value if name == "env_steps" else value
    return Rollout(**{name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in joined.items()})


def test_two_ranks_with_tensor_environments_are_one_rank_with_all_of_them(ranks):
    (weights, rollouts), (others, their_rollouts) = of(ranks, "tensors")
    assert_equal_bits(weights, others)
    together = [union(pair) for pair in zip(rollouts, their_rollouts, strict=True)]
    assert len(together) == 4
    assert all(len(rollout.final_rows) for rollout in together)
    assert not torch.isin(together[0].obs[0, :2], together[0].obs[0, 2:]).any()
    data = RolloutDataModule("Pendulum-v1", backend="device", **TENSORS)
    module = learner_of_tensors(data)
    trainer_of(None, precision="64-true").fit(module, DataLoader(together, batch_size=None))
    for key, value in weights_of(module).items():
        np.testing.assert_allclose(weights[key], value, rtol=1e-10, atol=1e-10, err_msg=key)


def settle(rank):
    """The back-end of a rank, where each would find another to be the fastest."""
    with pytest.MonkeyPatch.context() as patch:
        found = ("sync", "vector")[rank]
        patch.setattr("pg_lightning.data.datamodule.choose_backend", lambda *_: (found, ""))
        rollouts = RolloutDataModule("CartPole-v1", backend="auto")
        rollouts.setup("fit")
    return rollouts.backend


def evaluate(rank, limit, **data):
    """Returns of the episodes of all ranks, of an evaluation that stops after `limit` on each."""
    torch.manual_seed(7)
    rollouts = RolloutDataModule("CartPole-v1", **data)
    spaces = {"observation_space": rollouts.observation_space, "action_space": rollouts.action_space}
    module = PPO(**spaces, hidden_sizes=[4])
    trainer_of(rank, limit_val_batches=limit).validate(module, datamodule=rollouts, verbose=False)
    return module.evaluation[0].tolist()


class Apart(A2C):
    """Forgets what the other ranks have found."""

    def update(self, rollout):
        together, self.learner.collectives = self.learner.collectives, Alone()
        metrics = super().update(rollout)
        self.learner.collectives = together
        return metrics


def tell_apart(rank):
    try:
        learn(Apart, DISCRETE, PLAIN, {}, rank)
    except UserError as error:
        return str(error)


def with_count(function, *arguments):
    """What it returns, and how often the ranks added something up through gloo."""
    count = 0

    def counted(x, *more, **options):
        nonlocal count
        count += 1
        return all_reduce(x, *more, **options)

    all_reduce = distributed.all_reduce
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "all_reduce", counted)
        return function(*arguments), count


def cases(rank):
    """What each of the two processes does: all cases, one after the other."""
    for name, case in CASES.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shared_memory, "FOLDER", "/nowhere")
            gloo, count_of_gloo = with_count(learn, *case, rank)
        memory, count_of_memory = with_count(learn, *case, rank)
        yield name, (*memory, gloo[0], count_of_memory, count_of_gloo)
    yield "per rank", learn(*PER_RANK, rank)
    for name, case in ENVIRONMENTS.items():
        yield name, play(rank, **case)
    yield "tensors", play_tensors(rank)
    yield "backend", (settle(rank),)
    yield "apart", (tell_apart(rank),)
    yield "evaluation", (evaluate(rank, 3, eval_episodes=40, num_envs=10),)


@pytest.fixture(scope="module")
def ranks():
    return outcomes_of(cases)


def assert_equal_bits(one, other):
    for name in one.keys() | other.keys():
        np.testing.assert_array_equal(one[name], other[name], name)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_on_halves_are_one_on_the_whole(name, ranks):
    (weights, metrics, by_gloo, *counts), (others, their_metrics, _, *_) = of(ranks, name)
    assert_equal_bits(weights, others)
    assert_equal_bits(weights, by_gloo)
    assert counts[0] < counts[1]  # Lightning has messages of its own
    assert_equal_bits(metrics, their_metrics | {"time/steps_per_second": metrics["time/steps_per_second"]})
    whole, whole_metrics = learn(*CASES[name])
    for key, value in whole.items():
        np.testing.assert_allclose(weights[key], value, rtol=1e-10, atol=1e-10, err_msg=key)
    assert metrics.keys() == whole_metrics.keys()
    for key in metrics.keys() - {"train/explained_variance", "time/steps_per_second"}:
        np.testing.assert_allclose(metrics[key], whole_metrics[key], rtol=1e-6, err_msg=key)


def test_the_early_stop_of_those_cases_ends_some_updates_and_not_all():
    """Else `target_kl` would have shown nothing."""
    steps = []

    class Counted(PPO):
        def update(self, rollout):
            steps.append(0)
            return super().update(rollout)

        def loss(self, batch):
            steps[-1] += 1
            return super().loss(batch)

    learn(Counted, *CASES["PPO, early stop"][1:])
    assert min(steps) < 9
    assert len(set(steps)) > 1


def test_advantages_standardised_per_rank_are_those_of_the_halves(ranks, monkeypatch):
    (weights, _), (others, _) = of(ranks, "per rank")
    assert_equal_bits(weights, others)

    def halves(x, gather=None):
        return torch.stack(
            [standardize(part.flatten()).view(T, N // 2) for part in x.view(T, 2, -1).unbind(1)], 1
        ).flatten()

    together, _ = learn(*PER_RANK[:3], {"normalize_advantage": True})
    monkeypatch.setattr(targets, "standardize", halves)
    expected, _ = learn(*PER_RANK)
    assert max(np.abs(weights[key] - together[key]).max() for key in weights) > 1e-4
    for key in weights:
        np.testing.assert_allclose(weights[key], expected[key], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_ranks_play_rollouts_of_their_own_and_learn_in_step(name, ranks):
    (weights, metrics, env_steps, rows, obs), (others, their_metrics, their_env_steps, their_rows, their_obs) = of(
        ranks, name
    )
    assert_equal_bits(weights, others)
    assert metrics.keys() == their_metrics.keys()
    assert env_steps == their_env_steps == sum(rows) + sum(their_rows) >= 64
    assert len(rows) == len(their_rows)
    same = min(len(obs), len(their_obs))
    assert not np.isclose(obs[:same], their_obs[:same]).any(-1).all()
    assert all(np.isfinite(x).all() for x in weights.values())
    least = min(rows + their_rows)
    assert least == 0 if name == "one row" else least < 4 if name.startswith("few rows") else least > 0


def test_the_back_end_of_all_is_what_the_first_has_found_to_be_the_fastest(ranks):
    assert of(ranks, "backend") == (("sync",), ("sync",))


def test_ranks_that_drift_apart_are_told_which_on_every_rank(ranks):
    (message,), (same,) = of(ranks, "apart")
    assert message == same
    assert message.startswith(
        "trainer.devices: weights or statistics of rank 1 differ from those of rank 0 after 1 upd"
    )


def test_an_evaluation_that_stops_early_keeps_the_first_episodes_on_both_ranks(ranks):
    (returns,), (same,) = of(ranks, "evaluation")
    assert returns == same
    alone = evaluate(None, 1.0, eval_episodes=6, num_envs=1)
    assert returns == alone[::2] + alone[1::2]
    assert len(set(alone)) > 2
