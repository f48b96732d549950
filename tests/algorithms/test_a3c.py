"""Workers that share one set of weights: with one worker A3C is A2C, with more nothing is lost, torn or left behind."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from doubles import on_step
from gymnasium import spaces
from lightning.pytorch import Callback
from run_files import load, read_metrics

from pg_lightning.algorithms import A2C, A3C
from pg_lightning.callbacks import EvaluateEverySteps
from pg_lightning.data import RolloutDataModule
from pg_lightning.errors import UserError
from pg_lightning.learning.learner import check_update
from pg_lightning.strategies import HogwildStrategy, WorkerError

EVERY_NORMALIZER = {"normalize_obs": True, "scale_rewards": True}
SPACES = {"observation_space": spaces.Box(-1.0, 1.0, (4,)), "action_space": spaces.Discrete(2)}


def weights_of(module):
    return {name: tensor.clone() for name, tensor in module.network.state_dict().items()}


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6)


@pytest.fixture
def train(fit):
    """Twenty updates of a small network on CartPole."""

    def run(algorithm, workers=None, total_steps=20 * 32, **model):
        torch.manual_seed(0)
        trainer = {} if workers is None else {"strategy": HogwildStrategy(), "devices": workers}
        data = {"num_envs": 4, "num_steps": 8, "total_steps": total_steps, "eval_every_steps": 320, "eval_episodes": 1}
        return fit(
            "CartPole-v1", data, algorithm=algorithm, trainer=trainer, **{"lr": 1e-2, "critic_lr": 2e-2, **model}
        )

    return run


CASES = {
    "RMSprop": {},
    "Adam": {"optimizer": "adam"},
    "GAE": {"gae_lambda": 0.9, "normalize_advantage": True, "ent_coef": 0.01},
    "shared torso": {"shared_torso": True, "lr_schedule": "linear"},
    "normalisers": EVERY_NORMALIZER,
    "memory": {"memory": "gru"},
}


@pytest.mark.parametrize("workers", [None, 1], ids=["in this process", "one worker"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_with_one_worker_it_is_a2c(train, options, workers):
    assert_close(weights_of(train(A3C, workers, **options)), weights_of(train(A2C, **options)))


@pytest.mark.parametrize("options", [{"locked": True}, {"shared_statistics": False}], ids=str)
def test_with_one_worker_a_lock_and_statistics_of_ones_own_make_no_difference(train, options):
    assert_close(weights_of(train(A3C, 1, **options)), weights_of(train(A2C)))


def test_another_learning_rate_would_be_noticed(train):
    one, other = weights_of(train(A3C, 1, lr=1.1e-2)), weights_of(train(A2C))
    assert not torch.allclose(one["actor_head.linear.weight"], other["actor_head.linear.weight"], atol=1e-4)


class Watched(A3C):
    """Counts, in shared memory, what each worker does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.rollouts = torch.zeros(8, dtype=torch.int64).share_memory_()
        self.steps = torch.zeros(8, dtype=torch.int64).share_memory_()
        self.moved_while_acting = torch.zeros(8, dtype=torch.int64).share_memory_()

        self.acted_with = None
        act = self.actor.act

        def watched(obs, generator, deterministic=False, action_mask=None, state=None):
            if not deterministic:
                weights = torch.cat([p.flatten() for p in self.network.parameters()])
                if self.acted_with is not None:
                    self.moved_while_acting[self.global_rank] += not torch.equal(weights, self.acted_with)
                self.acted_with = weights.clone()
            return act(obs, generator, deterministic, action_mask, state)

        self.actor.act = watched

    def update(self, rollout):
        rank = self.global_rank
        self.acted_with = None
        self.rollouts[rank] += 1
        self.steps[rank] += rollout.env_steps
        return super().update(rollout)


def test_every_worker_learns_on_a_copy_that_stays_as_it_is_during_a_rollout(train):
    module = train(Watched, 3)
    assert (module.rollouts[:3] > 0).all()
    assert (module.rollouts[3:] == 0).all()
    assert not module.moved_while_acting.any()
    own = {p.untyped_storage().data_ptr() for p in module.network.parameters()}
    assert not own & {w.untyped_storage().data_ptr() for w in module.shared.weights.values()}


@pytest.mark.parametrize("locked", [False, True])
def test_updates_and_env_steps_of_all_workers_are_counted(train, locked):
    module = train(Watched, 2, locked=locked)
    assert int(module.shared.updates) == int(module.rollouts.sum())
    assert int(module.shared.env_steps) == int(module.steps.sum())
    # All stop at the budget; each may have had one rollout under way.
    assert 640 <= int(module.shared.env_steps) <= 640 + 32


def test_gradients_of_several_updates_do_not_add_up(train):
    class Still(A3C):
        """Does not move, so that equal rollouts give equal gradients."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.gradients = []
            on_step(
                self.learner,
                after=lambda: self.gradients.append([w.grad.clone() for w in self.shared.weights.values()]),
            )

        def update(self, rollout):
            self.first = getattr(self, "first", rollout)
            return super().update(replace(self.first, policy_version=rollout.policy_version))

    module = train(Still, lr=0.0, critic_lr=0.0)
    first, *others = module.gradients
    assert len(others) > 5
    for gradient in others:
        for one, other in zip(first, gradient, strict=True):
            torch.testing.assert_close(one, other)


def test_statistics_of_normalisers_are_those_of_the_data_of_all_workers(train):
    class Counting(Watched):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.total = torch.zeros(3, 4, dtype=torch.float64).share_memory_()

        def update(self, rollout):
            obs = rollout.obs[:-1].flatten(0, 1).double()
            with self.shared.lock:
                self.total += torch.stack([torch.ones_like(obs), obs, obs.square()]).sum(1)
            return super().update(rollout)

    module = train(Counting, 2, **EVERY_NORMALIZER)
    torch.testing.assert_close(module.shared.sums[0], module.total)
    mean = module.total[1] / module.total[0]
    # Worker 0 has left with what it saw last: at most one rollout of the other is missing.
    torch.testing.assert_close(module.network.normalizer.statistics.mean, mean, rtol=0.2, atol=0.1)


def test_all_stop_when_worker_0_is_stopped(fit):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop |= trainer.global_rank == 0 and trainer.lightning_module.policy_version == 3

    trainer = {"strategy": HogwildStrategy(), "devices": 2, "callbacks": [EvaluateEverySteps(), Stop()]}
    data = {"num_envs": 4, "num_steps": 8, "total_steps": 10**9, "eval_every_steps": 10**6, "eval_episodes": 1}
    module = fit("CartPole-v1", data, algorithm=Watched, trainer=trainer)
    assert module.rollouts[0] == 3


def test_a_worker_that_comes_when_worker_0_has_ended_ends_too(fit):
    class Late(Watched):
        def on_train_start(self):
            while self.global_rank == 1 and not self.shared.over:
                time.sleep(0.01)
            super().on_train_start()

    trainer = {"strategy": HogwildStrategy(), "devices": 2, "max_steps": 3}
    data = {"num_envs": 4, "num_steps": 8, "total_steps": 10**6, "eval_every_steps": 10**6, "eval_episodes": 1}
    module = fit("CartPole-v1", data, algorithm=Late, trainer=trainer)
    assert module.rollouts[0] == 3
    assert module.rollouts[1] <= 1
    assert module.shared.over


def test_a_fit_goes_on_where_the_last_one_failed(fit, quiet_trainer):
    class Mortal(Watched):
        mortal = True

        def update(self, rollout):
            if self.mortal and self.rollouts.sum() >= 5:
                raise RuntimeError("no more")
            return super().update(rollout)

    data = RolloutDataModule("CartPole-v1", num_envs=4, num_steps=8, total_steps=640, eval_episodes=1)
    module = Mortal(**SPACES, hidden_sizes=[8], total_steps=640)
    with pytest.raises(WorkerError, match="no more"):
        quiet_trainer(strategy=HogwildStrategy(), devices=2).fit(module, datamodule=data)
    module.mortal = False
    quiet_trainer(strategy=HogwildStrategy(), devices=2).fit(module, datamodule=data)
    assert 640 <= int(module.shared.env_steps) <= 640 + 32


@pytest.mark.parametrize("cause", ["exception", "kill"])
def test_a_worker_that_dies_is_named(train, cause):
    class Mortal(Watched):
        def update(self, rollout):
            if self.global_rank == 1 and self.rollouts[1] == 3:
                if cause == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("no more")
            return super().update(rollout)

    with pytest.raises(WorkerError, match="worker 1.*" + ("SIGKILL" if cause == "kill" else "failed")):
        train(Mortal, 2, total_steps=10**9)


def test_shared_weights_that_are_not_finite_end_the_update(quiet_trainer):
    """They are shared: the copy of a worker may be fine."""
    module = A3C(**SPACES, hidden_sizes=[4])
    module.trainer = quiet_trainer()
    module.learner.module = module
    module.configure_optimizers()
    check_update(module.learner, {})
    for weights in module.shared.weights.values():
        weights.data.fill_(torch.nan)
    with pytest.raises(UserError, match=r"^model\.lr: training has diverged"):
        check_update(module.learner, {})


def test_weights_of_another_precision_than_the_shared_ones_are_refused(fit):
    with pytest.raises(UserError, match=r"trainer.precision.*32-true"):
        fit("CartPole-v1", algorithm=A3C, trainer={"precision": "64-true"})


def test_workers_of_an_algorithm_that_shares_nothing_are_refused(train):
    with pytest.raises(UserError, match=r"trainer.strategy.*A2C of their own.*A3C"):
        train(A2C, 2)


def test_what_needs_an_evaluation_in_every_worker_is_refused():
    with pytest.raises(UserError, match=r"model.lr_schedule.*use linear"):
        A3C(**SPACES, lr_schedule="plateau")


CONFIG = """
seed_everything: 1
trainer: {accelerator: cpu, strategy: hogwild, devices: 2, log_every_n_steps: 2}
model:
  class_path: pg_lightning.algorithms.A3C
  init_args: {lr: 1.0e-3, hidden_sizes: [16], normalize_obs: true, optimizer: adam}
data: {env_id: CartPole-v1, num_envs: 4, num_steps: 8, total_steps: 1000, eval_every_steps: 400, eval_episodes: 2}
"""


@pytest.fixture(scope="module")
def a3c_run(cli, tmp_path_factory):
    folder = tmp_path_factory.mktemp("a3c")
    (folder / "a3c.yaml").write_text(CONFIG)
    finished = cli(folder, "fit", "--config", "a3c.yaml")
    assert finished.returncode == 0, finished.stderr
    assert "best:" in finished.stdout
    return folder / "runs/a3c/version_0"


def test_a_run_has_one_log_with_staleness_and_the_steps_of_all_workers(a3c_run):
    assert [path.name for path in a3c_run.parent.iterdir()] == ["version_0"]
    rows = read_metrics(a3c_run)
    assert rows[-1]["step"] >= 1000
    assert all(row["train/staleness"] >= 0 for row in rows if "train/staleness" in row)
    assert any("train/staleness" in row for row in rows)
    assert {"best.ckpt", "last.ckpt"} <= {path.name for path in (a3c_run / "checkpoints").iterdir()}


@pytest.mark.parametrize("worker", [0, 1])
def test_a_worker_that_is_stopped_is_named_within_the_limit(worker, cli, tmp_path):
    (tmp_path / "a3c.yaml").write_text(CONFIG)
    env = ("--data.env_id", "failing_envs:StopsWorker-v0", "--data.env_kwargs", f"{{worker: {worker}}}")
    begin = time.monotonic()
    finished = cli(tmp_path, "fit", "--config", "a3c.yaml", *env, "--data.env_timeout", 1.5)
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1] == (
        f"error: strategy hogwild: worker {worker} was stopped by a signal and did not continue within "
        "data.env_timeout, 1.5 s"
    )
    assert time.monotonic() - begin < 10
    assert multiprocessing.active_children() == []


def test_a_run_is_resumed_with_the_moments_of_its_optimizers(a3c_run, cli, tmp_path):
    last = a3c_run / "checkpoints/last.ckpt"
    before = load(last)
    finished = cli(
        tmp_path, "fit", "--ckpt_path", last, "--data.total_steps", 1500, "--model.lr", 0, "--model.critic_lr", 0
    )
    assert finished.returncode == 0, finished.stderr
    after = load(next(tmp_path.glob("runs/a3c/version_*")) / "checkpoints/last.ckpt")
    assert after["pg_lightning"]["env_steps"] >= 1500
    for name, weight in before["state_dict"].items():
        if name.endswith((".weight", ".bias")):
            assert torch.equal(weight, after["state_dict"][name])
    steps = [states["optimizer_states"][0]["state"][0]["step"].item() for states in (before, after)]
    assert 0 < steps[0] < steps[1]
    assert after["optimizer_states"][0]["state"][0]["exp_avg"].abs().sum() > 0


@pytest.mark.parametrize(("world_size", "device"), [(2, "cpu"), (1, "cuda")])
def test_a_strategy_that_does_not_share_memory_is_refused(world_size, device):
    module = A3C(**SPACES)
    strategy = SimpleNamespace(root_device=torch.device(device), checkpoint_io=None)
    module.trainer = SimpleNamespace(world_size=world_size, strategy=strategy, precision="32-true")
    with pytest.raises(UserError, match=r"trainer.strategy.*hogwild"):
        module.setup("fit")
