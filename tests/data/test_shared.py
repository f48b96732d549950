"""One instance of a simulator serves spaces, training and evaluation."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from run_files import complaint, read_metrics
from simulators import Pole

from pg_lightning import RolloutDataModule
from pg_lightning.algorithms import PPO
from pg_lightning.commands.diagnose import diagnosis_collector
from pg_lightning.errors import UserError
from pg_lightning.strategies import HogwildStrategy

N, LIMIT = 3, 9
KINDS: dict[str, dict[str, Any]] = {
    "IsaacLab": {"gives_final_obs": True},
    "Mjlab": {},
    "ManiSkill": {},
    "OwnVectorEnv": {},
    "Genesis": {},
    "Playground": {},
}


def data_of(name: str = "IsaacLab", kwargs: dict[str, Any] | None = None, **settings: Any) -> RolloutDataModule:
    settings = {"num_envs": N, "num_steps": 16, "total_steps": 192, "eval_episodes": 4, **settings}
    kwargs = KINDS.get(name, {}) if kwargs is None else kwargs
    return RolloutDataModule(f"simulators.{name}", {"limit": LIMIT, **kwargs}, backend="simulator", **settings)


def module_of(data: RolloutDataModule, **model: Any) -> PPO:
    torch.manual_seed(0)
    return PPO(
        observation_space=data.observation_space,
        action_space=data.action_space,
        total_steps=data.total_steps,
        **{"hidden_sizes": [8], "num_minibatches": 2, "log_std_init": 0.5, **model},
    )


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_training_with_evaluations_makes_one_instance(name: str, quiet_trainer: Any) -> None:
    made = Pole.made
    data = data_of(name, eval_every_steps=48)
    module, trainer = module_of(data, normalize_obs=True), quiet_trainer()
    trainer.fit(module, datamodule=data)
    assert module.env_steps >= 192
    returns = module.evaluation.returns
    assert len(returns) == 4
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.test(module, datamodule=data, verbose=False)
    assert Pole.made == made + 1


def test_it_is_closed_when_nothing_refers_to_it(quiet_trainer: Any) -> None:
    data = data_of()
    pole, copy = Pole.latest, data.with_settings(eval_episodes=2)
    data.teardown("fit")
    del data
    gc.collect()
    assert not pole.is_closed
    del copy
    gc.collect()
    assert pole.is_closed


def evaluate(data: RolloutDataModule, **model: Any) -> tuple[list[tuple[float, int]], Pole, Any]:
    """Returns and lengths of an evaluation, and the simulator with its records of it alone."""
    module = module_of(data, **model)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", **quiet)
    pole = Pole.latest
    trainer.validate(module, datamodule=data, verbose=False)
    returns, lengths, _ = module.evaluation
    return list(zip(returns.tolist(), lengths.long().tolist(), strict=True)), pole, module


def played(pole: Pole, first: np.ndarray, resets_next: bool) -> list[tuple[int, int, float, int]]:
    """Every episode of the recorded actions: when it began, its environment, its return and its length."""
    state, began = first.astype(np.float32), np.zeros(N, int)
    returns, lengths, waits = np.zeros(N), np.zeros(N, int), np.zeros(N, bool)
    episodes = []
    for t, actions in enumerate(pole.actions):
        x, v, angle, w = state.T
        force = actions[:, 0].numpy().clip(-1, 1)
        moved = np.stack([x + 0.02 * v, v + 0.2 * force, angle + 0.02 * w, w + 0.3 * angle - 0.3 * force], 1)
        returns, lengths = returns + ~waits * (1 - abs(moved[:, 0])), lengths + ~waits
        done = ((abs(moved[:, 2]) > 0.2) | (lengths >= LIMIT)) & ~waits
        episodes += [(began[n], n, returns[n], lengths[n]) for n in np.flatnonzero(done)]
        begins = waits if resets_next else done
        waits = done if resets_next else waits
        began[done] = t + 1
        returns, lengths = np.where(done, 0.0, returns), np.where(done, 0, lengths)
        if begins.any():
            moved = np.where(begins[:, None], pole.firsts[t].numpy(), moved)
        state = moved.astype(np.float32)
    return episodes


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("count", [2, 3, 11])
def test_an_evaluation_counts_the_first_episodes_that_begin_whatever_their_length(name: str, count: int) -> None:
    data = data_of(name, eval_episodes=count)
    firsts: list[np.ndarray] = []
    restart = Pole.latest.restart

    def recorded(seed: int | None = None) -> None:
        restart(seed)
        firsts.append(Pole.latest.state.numpy().copy())

    Pole.latest.restart = recorded
    found, pole, _ = evaluate(data)
    assert len(firsts) == 1
    episodes = played(pole, firsts[0], name == "OwnVectorEnv")
    expected = sorted(episodes)[:count]  # by their begin, then by environment
    assert sorted(length for _, length in found) == sorted(length for _, _, _, length in expected)
    np.testing.assert_allclose(sorted(x for x, _ in found), sorted(x for _, _, x, _ in expected), atol=1e-4)


def test_two_evaluations_of_the_same_policy_are_equal_and_their_actions_are_the_mode() -> None:
    data = data_of(eval_episodes=5)
    found, pole, module = evaluate(data)
    pole.actions.clear()
    data.trainer.validate(module, datamodule=data, verbose=False)
    assert module.evaluation[0].tolist() == [x for x, _ in found]
    loud, _, _ = evaluate(data_of(eval_episodes=5, eval_deterministic=False))
    assert loud != found


def test_training_starts_new_episodes_after_an_evaluation_with_seeds_of_their_own() -> None:
    data = data_of()
    evaluate(data)
    module = data.trainer.lightning_module
    collector = data.train_dataloader().collector
    before = [collector.collect(module.actor) for _ in range(2)]
    assert before[1].timesteps[0].any()
    firsts = []
    for _ in range(2):
        data.trainer.validate(module, datamodule=data, verbose=False)
        rollout = collector.collect(module.actor)
        assert not rollout.timesteps[0].any()
        assert (rollout.episode_lengths <= LIMIT).all()
        firsts.append(rollout.obs[0])
    assert not any(torch.equal(x, y) for x, y in [(firsts[0], firsts[1]), (firsts[0], before[0].obs[0])])
    again = collector.collect(module.actor)
    torch.testing.assert_close(again.obs[0], rollout.obs[-1])


def test_the_last_observation_of_a_trajectory_is_the_last_of_its_episode() -> None:
    data = data_of("ManiSkill", eval_episodes=2)
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    module = module_of(data)
    episodes = data.trainer.predict(module, datamodule=data)
    for episode in episodes:
        obs, actions = episode.trajectory["obs"], episode.trajectory["actions"]
        x, v, angle, w = obs[-2]
        force = actions[-1, 0].clamp(-1, 1)
        moved = torch.stack([x + 0.02 * v, v + 0.2 * force, angle + 0.02 * w, w + 0.3 * angle - 0.3 * force])
        torch.testing.assert_close(obs[-1], moved)


def test_an_endless_episode_is_cut_where_no_other_must_follow_it() -> None:
    endless = {"limit": 10**6, "gives_final_obs": True}
    with pytest.warns(UserWarning, match="data.eval_max_episode_steps = 5"):
        found, _, _ = evaluate(data_of(kwargs=endless, eval_episodes=N, eval_max_episode_steps=5))
    assert [length for _, length in found] == [5] * N
    with pytest.raises(UserError, match=r"set data.eval_episodes to at most data.num_envs = 3"):
        evaluate(data_of(kwargs=endless, eval_episodes=N + 1, eval_max_episode_steps=5))


@pytest.mark.parametrize("name", ["train_env_kwargs", "train_wrappers", "overlap"])
def test_a_second_instance_is_refused_in_one_line(name: str) -> None:
    value: Any = {"train_env_kwargs": {"limit": 3}, "train_wrappers": ["a.B"], "overlap": True}[name]
    with pytest.raises(UserError, match=rf"^data.{name}: with backend 'simulator' one instance .*; remove it$"):
        data_of(**{name: value})


def test_another_autoreset_mode_than_its_own_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^data.autoreset_mode: .* resets as same_step, not next_step$"):
        data_of(autoreset_mode="next_step")


def test_workers_with_environments_of_their_own_are_refused_in_one_line() -> None:
    data = data_of()
    data.trainer = Trainer(accelerator="cpu", strategy=HogwildStrategy(), devices=2, logger=False)
    with pytest.raises(UserError, match=r"trainer.strategy: hogwild needs more than the one instance of backend"):
        data.setup("fit")


def test_episodes_of_a_diagnosis_are_one_for_each_environment() -> None:
    data = data_of()
    with pytest.raises(UserError, match="has 3 environments, not 5; for diagnose, set episodes to this number"):
        diagnosis_collector(data, 5)
    _, _, module = evaluate(data)
    assert len(diagnosis_collector(data, N).collect(module.actor).episode_lengths) == N


def test_evaluations_that_leave_no_time_for_long_episodes_are_reported(quiet_trainer: Any) -> None:
    data = data_of(eval_every_steps=48)
    with pytest.warns(UserWarning, match=r"only 16 steps of each between .* raise it \(to 1000 steps: 3000\)"):
        quiet_trainer().fit(module_of(data), datamodule=data)


@pytest.mark.parametrize(
    ("name", "kwargs", "loses"),
    [
        ("IsaacLab", {}, True),
        ("IsaacLab", {"gives_final_obs": True}, False),
        ("IsaacLab", {"limit": 10**6}, False),
        ("OwnVectorEnv", {}, False),
        ("Genesis", {}, True),
    ],
)
def test_a_bootstrap_without_last_observations_is_logged_and_reported_once(
    name: str, kwargs: Any, loses: bool, quiet_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("pg_lightning.data.shared.rank_zero_info", said.append)
    data = data_of(name, kwargs, total_steps=96)
    module, trainer = module_of(data), quiet_trainer(log_every_n_steps=1)
    trainer.fit(module, datamodule=data)
    assert trainer.callback_metrics["train/bootstrap_is_approximate"] == float(loses)
    assert [line.startswith("data.env_id: the environments lose the last observation of ") for line in said] == [
        True
    ] * loses


def test_another_device_than_that_of_the_policy_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("pg_lightning.data.environments.rank_zero_info", said.append)
    data = data_of()
    for device, count in (("cpu", 0), ("cuda:1", 1)):
        strategy = SimpleNamespace(root_device=torch.device(device))
        data.trainer = SimpleNamespace(strategy=strategy, world_size=1, global_rank=0)  # type: ignore[assignment]
        data.setup("fit")
        assert len(said) == count
    assert said[0].startswith("data.env_id: the environments are on cpu and the policy is on cuda:1, so every step ")


CONFIG = """
seed_everything: 1
trainer: {accelerator: cpu, log_every_n_steps: 1}
model:
  class_path: pg_lightning.algorithms.PPO
  init_args: {num_epochs: 2, num_minibatches: 2, hidden_sizes: [16], normalize_obs: true, scale_rewards: true}
data: {env_id: CartPole-v1, num_envs: 4, num_steps: 16, total_steps: 320, eval_every_steps: 160, eval_episodes: 3}
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--data.env_id simulators.eight_poles",
            "data.num_envs: simulators.eight_poles has 8 environments, not 4; set",
        ),
        ("--data.env_id simulators.numpy_poles", "data.backend: the observations of this simulator are ndarray, not "),
        ("--data.env_id simulators.nope", "data.env_id: cannot import 'simulators.nope': "),
        (
            "--data.env_id simulators.IsaacLab --data.overlap true",
            "data.overlap: with backend 'simulator' one instance",
        ),
        ("--data.env_id simulators.IsaacLab --data.wrappers [a.B]", "data.wrappers: backend 'simulator' runs the env"),
        (
            "--data.env_id simulators.IsaacLab --model.shared_torso true",
            "model.shared_torso: the actor sees ['policy'] ",
        ),
    ],
)
def test_a_mistake_is_one_line_of_the_command_line(cli: Any, tmp_path: Any, arguments: str, message: str) -> None:
    config = tmp_path / "robot.yaml"
    config.write_text(CONFIG)
    command = ("fit", "--config", config, "--data.backend", "simulator", *arguments.split())
    assert complaint(cli(tmp_path, *command)).startswith(message)


def test_the_command_line_trains_tests_and_resumes(cli: Any, tmp_path: Any) -> None:
    config = tmp_path / "robot.yaml"
    config.write_text(CONFIG)
    simulator = ("--data.backend", "simulator", "--data.env_id", "simulators.make_isaac", "--data.env_kwargs.limit", 9)
    made = Pole.made
    finished = cli(tmp_path, "fit", "--config", config, *simulator)
    assert finished.returncode == 0, finished.stderr
    assert Pole.made == made + 1
    rows = read_metrics(tmp_path / "runs/robot/version_0")
    assert rows[-1]["step"] == 320
    assert {row["train/bootstrap_is_approximate"] for row in rows if "train/entropy" in row} <= {0.0, 1.0}
    assert 1 < max(row.get("val/length_mean", 0) for row in rows) <= 9
    best = tmp_path / "runs/robot/version_0/checkpoints/best.ckpt"
    trusted = ("--ckpt_path", best, "--config", tmp_path / "runs/robot/version_0/config.yaml")
    tested = cli(tmp_path, "test", *trusted, "--data.eval_episodes", 10)
    assert tested.returncode == 0, tested.stderr
    assert "over 10 episodes of simulators.make_isaac" in tested.stdout
    with pytest.warns(UserWarning, match="cannot be restored to its state .*: a simulator does not save its state"):
        resumed = cli(tmp_path, "fit", "--config", config, *simulator, "--ckpt_path", "last", "--data.total_steps", 640)
    assert resumed.returncode == 0, resumed.stderr
    exported = cli(tmp_path, "export", *trusted, "--format", "torch")
    assert exported.returncode == 0, exported.stderr
    recorded = cli(tmp_path, "record", *trusted)
    assert complaint(recorded).startswith("record cannot render with data.backend simulator; ")
