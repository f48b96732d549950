"""The estimators against exact means on a gridworld, the statistics against known distributions, and the command."""

import csv
import json

import numpy as np
import pytest
import torch
from run_files import complaint

from pg_lightning.algorithms import A2C, PPO, REINFORCE
from pg_lightning.analysis.gradient_noise import between, compare, inner_products, is_seen, least_noisy
from pg_lightning.commands import diagnose as command
from pg_lightning.commands import diagnosis_report, estimators
from pg_lightning.commands.diagnose import diagnosis_collector, play
from pg_lightning.commands.estimators import LEARNED_BASELINE, TD, give_critic, gradients_on, train_critic, weights_of
from pg_lightning.data import RolloutDataModule
from pg_lightning.envs.tasks.gridworld import CORRIDOR, GreyCells, walls
from pg_lightning.rollout import Rollout

GREY_CELLS = "pg_lightning.envs.tasks.gridworld:pg_lightning/GreyCells-v0"
GAMMA = 0.8
LAMBDAS = [0.6]
EXACT = {
    "episode return": 1.0,
    "reward-to-go": 1.0,
    "mean baseline": 1.0,
    "learned baseline": 1.0,
    "GAE(0.6)": 0.6,
    TD: 0.0,
}


def spaces_of(data):
    return {"observation_space": data.observation_space, "action_space": data.action_space}


# Exact means: a policy that is linear in the walls around a cell, and a critic that cannot tell two cells apart.


@pytest.fixture(scope="module")
def grey_cells():
    """A module with an arbitrary policy and critic, and the gradients of 200 batches of 6 episodes."""
    from lightning.pytorch import Trainer

    torch.manual_seed(2)
    data = RolloutDataModule(GREY_CELLS, env_kwargs={"penalty": 3.0, "max_episode_steps": 10_000})
    module = A2C(**spaces_of(data), gamma=GAMMA, hidden_sizes=[])
    for parameter in module.network.parameters():
        torch.nn.init.normal_(parameter, std=0.8)
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    collector = diagnosis_collector(data, 6)
    gradients, explained = gradients_on(module, play(collector, module, 200, ""), LAMBDAS)
    collector.close()
    return module, gradients, explained


def exact_mean(module, gae_lambda, gamma=GAMMA):
    """E[ Σ_t A_t ∇log π(a_t|s_t) ] for GAE(λ) with the module's critic, from the transitions of the gridworld."""
    env, cells = GreyCells(penalty=3.0), len(CORRIDOR)
    transitions, rewards = np.zeros((cells, 4, cells)), np.zeros((cells, 4))
    for s, cell in enumerate(CORRIDOR):
        for a in range(4):
            env.reset(options={"cell": cell})
            _, rewards[s, a], ended, _, _ = env.step(a)
            if not ended:
                transitions[s, a, CORRIDOR.index(env.cell)] = 1.0
    obs = torch.from_numpy(np.stack([walls(cell) for cell in CORRIDOR]))
    pi = module.network.pi(obs)
    log_pi = torch.stack([pi.log_prob(torch.full((cells,), a)) for a in range(4)], -1)
    p, v = log_pi.exp().detach().double().numpy(), module.network.v(obs).detach().double().numpy()
    deltas = rewards + gamma * transitions @ v - v[:, None]
    moves = np.einsum("sa,sat->st", p, transitions)
    visits = np.linalg.solve(np.eye(cells) - moves.T, np.full(cells, 1 / cells))
    following = np.linalg.solve(np.eye(cells) - gamma * gae_lambda * moves, (p * deltas).sum(1))
    advantages = deltas + gamma * gae_lambda * transitions @ following
    weights = torch.from_numpy(visits[:, None] * p * advantages).float()
    parts = torch.autograd.grad((weights * log_pi).sum(), module.network.parameter_groups()[0])
    return torch.cat([part.flatten() for part in parts])


def agree(gradients, exact):
    """Whether the mean of `[M, P]` gradients is as near to the exact one as 999 in 1000 would be."""
    errors = (gradients - exact).double()
    products = (errors @ errors.T).numpy()
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (4000, len(errors)))
    return between(products, np.ones((1, len(errors))))[0] < np.percentile(between(products, signs), 99.9)


@pytest.mark.parametrize(("name", "gae_lambda"), EXACT.items())
def test_every_estimator_expects_what_it_should_exactly(grey_cells, name, gae_lambda):
    module, gradients, _ = grey_cells
    exact = exact_mean(module, gae_lambda)
    assert agree(gradients[name], exact)
    # A λ that is ignored and another discount would have been seen, and where noise allows an error of a fifth.
    assert name not in ("mean baseline", TD) or not agree(gradients[name], 1.2 * exact)
    assert not agree(gradients[name], exact_mean(module, 0.3))
    assert not agree(gradients[name], exact_mean(module, gae_lambda, gamma=0.95))


def test_baselines_and_the_critic_lower_the_variance(grey_cells):
    _, gradients, _ = grey_cells
    variance = {name: of_batches.var(0).sum().item() for name, of_batches in gradients.items()}
    assert variance["episode return"] > 1.2 * variance["reward-to-go"] > 1.4 * variance["mean baseline"]
    assert variance[LEARNED_BASELINE] > 1.2 * variance["GAE(0.6)"] > 1.4 * variance[TD]


def test_the_bias_that_is_reported_is_the_exact_one(grey_cells):
    module, gradients, _ = grey_cells
    names = list(gradients)
    found = compare(names, inner_products([*gradients.values()]), 6, names.index("mean baseline"))
    exact = exact_mean(module, 1.0)
    for estimate in found:
        mean = exact_mean(module, EXACT[estimate.estimator])
        bias = ((mean - exact).norm() / exact.norm()).item()
        direction = torch.cosine_similarity(mean, exact, dim=0).item()
        misdirection = (1 - max(0.0, direction) ** 2) ** 0.5
        assert estimate.bias == pytest.approx(bias, rel=0.1)
        assert estimate.misdirection == pytest.approx(misdirection, abs=0.05)
        assert estimate.direction == pytest.approx(direction, abs=0.05)
        assert (estimate.bias > estimate.bias_by_chance) == (bias > 0)


# The weights, worked by hand: γ = ½.


def rollout_of(rewards, terminated, truncated, valid, timesteps, final_rows=()):
    T = len(rewards)
    column = lambda values, dtype: torch.tensor(values, dtype=dtype).view(T, 1)  # noqa: E731
    return Rollout(
        obs=torch.zeros(T + 1, 1, 1),
        actions=torch.zeros(T, 1, dtype=torch.int64),
        rewards=column(rewards, torch.float32),
        terminated=column(terminated, torch.bool),
        truncated=column(truncated, torch.bool),
        valid=column(valid, torch.bool),
        timesteps=column(timesteps, torch.int64),
        final_obs=torch.zeros(len(final_rows), 1),
        final_rows=torch.tensor(final_rows, dtype=torch.int64),
        episode_returns=torch.zeros(0),
        episode_lengths=torch.zeros(0),
        policy_version=0,
        env_steps=sum(valid),
    )


def test_the_weights_worked_by_hand():
    """Two episodes with a row between them that is none; the second is cut where V of its last observation is 8."""
    rollout = rollout_of(
        rewards=[1.0, 2.0, 4.0, 99.0, 3.0, 5.0],
        terminated=[0, 0, 1, 0, 0, 0],
        truncated=[0, 0, 0, 0, 0, 1],
        valid=[1, 1, 1, 0, 1, 1],
        timesteps=[0, 1, 2, 0, 0, 1],
        final_rows=[5],
    )
    values = torch.tensor([1.0, 1.0, 2.0, 7.0, 0.0, 4.0]).view(6, 1)
    next_values = torch.tensor([1.0, 2.0, 7.0, 7.0, 4.0, 8.0]).view(6, 1)
    weights = weights_of(rollout, values, next_values, 0.5, [0.5])
    assert {name: psi.flatten().tolist() for name, psi in weights.items()} == {
        "episode return": [3.0, 4.5, 5.25, 0.0, 7.5, 10.5],
        "reward-to-go": [3.0, 4.0, 4.0, 0.0, 7.5, 9.0],
        "mean baseline": pytest.approx([3 - 8.25, 4 - 8.25, 4 - 8.25, 0.0, 7.5 - 11 / 3, 9 - 11 / 3]),
        "learned baseline": [2.0, 3.0, 2.0, 0.0, 7.5, 5.0],
        "GAE(0.5)": [0.5 + 0.25 * (2 + 0.25 * 2), 2 + 0.25 * 2, 2.0, 0.0, 5 + 0.25 * 5, 5.0],
        "TD": [0.5, 2.0, 2.0, 0.0, 5.0, 5.0],
    }


def test_rewards_are_scaled_as_in_training(quiet_trainer):
    data = RolloutDataModule("CartPole-v1")
    module = A2C(**spaces_of(data), scale_rewards=True, hidden_sizes=[])
    module.reward_scaler.statistics.merge(10, torch.tensor(0.0), torch.tensor(16.0))
    module.trainer = quiet_trainer()
    collector = diagnosis_collector(data, 2)
    (rollout,) = play(collector, module, 1, "")
    collector.close()
    torch.testing.assert_close(rollout.rewards[rollout.valid], torch.full((rollout.env_steps,), 0.25))


# The statistics, on vectors whose distribution is known.


def normal_gradients(rng, means, deviations, batches=64, parameters=20):
    """Independent gradients for each estimator, with mean `means[e]` in every component."""
    shape = (batches, parameters)
    return [torch.from_numpy(rng.normal(m, s, shape)) for m, s in zip(means, deviations, strict=True)]


def test_statistics_are_those_of_the_distribution():
    """|E g|² = 20 · 0.25 = 5 and tr Cov = 20 · 4 = 80, so SNR = 1/16; the second is twice as long, and as noisy."""
    gradients = normal_gradients(np.random.default_rng(0), [0.5, 1.0], [2.0, 2.0], batches=400)
    first, second = compare(["first", "second"], inner_products(gradients), 10, 0)
    assert first.norm**2 == pytest.approx(5, rel=0.1)
    assert first.variance == pytest.approx(80, rel=0.05)
    assert first.snr == pytest.approx(1 / 16, rel=0.1)
    assert first.noise == pytest.approx(160, rel=0.1)
    assert first.cosine == pytest.approx((5 / 85), rel=0.1)  # nearly: the lengths hardly vary
    assert second.snr == pytest.approx(1 / 4, rel=0.1)
    assert second.bias == pytest.approx(1, rel=0.1)
    assert second.direction == pytest.approx(1, abs=0.02)
    assert not second.is_misdirected
    for interval, value in ((first.snr_interval, 1 / 16), (first.noise_interval, 160), (second.bias_interval, 1.0)):
        assert interval[0] < value < interval[1]


def test_noise_is_not_called_bias_or_signal_more_often_than_chance_would():
    """Of 60 cases 3 on average."""
    rng = np.random.default_rng(1)
    names = ["reference", "unbiased", "biased", "nothing"]
    called, misdirected, seen, missed, covered = 0, 0, 0, 0, 0
    for _ in range(60):
        products = inner_products(normal_gradients(rng, [0.5, 0.5, 1.0, 0.0], [1.0, 2.0, 2.0, 1.0]))
        _, unbiased, biased, _ = compare(names, products, 1, 0)
        called += unbiased.is_biased
        misdirected += unbiased.is_misdirected
        seen += is_seen(products[3, 3])
        missed += not (biased.is_biased and is_seen(products[0, 0]))
        covered += biased.bias_interval[0] < 1.0 < biased.bias_interval[1]
    assert max(called, misdirected, seen) <= 8
    assert missed == 0
    assert covered >= 50


def test_the_reference_is_the_least_noisy_of_the_candidates():
    products = inner_products(normal_gradients(np.random.default_rng(2), [0.5, 0.5, 0.5], [2.0, 1.0, 0.1]))
    assert least_noisy(products, [0, 1]) == 1


# The critic.


@pytest.fixture
def quick(monkeypatch):
    """Fits critics in next to no time, and draws nothing."""
    monkeypatch.setattr(estimators, "CRITIC_STEPS", 20)
    monkeypatch.setattr(estimators, "CRITIC_BATCHES", 2)
    monkeypatch.setattr(diagnosis_report, "draw", lambda *_: [])


def test_the_critic_is_fitted_to_other_episodes_than_the_gradients_are_made_of(cli, tiny, tmp_path, monkeypatch, quick):
    seen: dict[str, list[Rollout]] = {"critic": [], "gradients": []}
    gradients_of = estimators.gradients_of
    monkeypatch.setattr(command, "train_critic", lambda m, r: (seen["critic"].extend(r), train_critic(m, r)))
    monkeypatch.setattr(
        estimators, "gradients_of", lambda m, r, w: (seen["gradients"].append(r), gradients_of(m, r, w))[1]
    )
    finished = cli(tmp_path, "diagnose", "--config", tiny, "--batches", 8, "--episodes", 3)
    assert finished.returncode == 0, finished.stderr
    starts = {name: {tuple(s) for r in rollouts for s in r.obs[0].tolist()} for name, rollouts in seen.items()}
    assert (len(starts["critic"]), len(starts["gradients"])) == (6, 24)
    assert not starts["critic"] & starts["gradients"]


@pytest.mark.parametrize(
    ("env", "obs", "v"), [("ObservedReward", [-1.0, 1.0], [-1.0, 1.0]), ("Endless", [0, 1], [5.0, 5.0])]
)
def test_a_fitted_critic_knows_the_value_beyond_a_time_limit_too(quiet_trainer, monkeypatch, env, obs, v):
    """V(o) = o; and 1 / (1 − γ) = 5 where episodes are only ever cut."""
    monkeypatch.setattr(estimators, "CRITIC_STEPS", 1200)
    data = RolloutDataModule(f"pg_lightning.envs.tasks.toy:pg_lightning/{env}-v0")
    module = REINFORCE(**spaces_of(data), hidden_sizes=[8], gamma=0.8)
    module.trainer = quiet_trainer()
    give_critic(module.network)
    collector = diagnosis_collector(data, 8)
    train_critic(module, list(play(collector, module, 2, "")))
    collector.close()
    seen = torch.tensor(obs).view(2, 1) if env == "ObservedReward" else torch.eye(2)
    torch.testing.assert_close(module.network.v(seen), torch.tensor(v), atol=0.2, rtol=0)


@pytest.mark.parametrize("shared_torso", [False, True])
def test_fitting_a_critic_leaves_the_policy_alone(quiet_trainer, tmp_path, quick, shared_torso):
    data = RolloutDataModule(GREY_CELLS)
    module = PPO(**spaces_of(data), hidden_sizes=[16], shared_torso=shared_torso)
    before = [parameter.clone() for parameter in module.network.parameter_groups()[0]]
    estimates = command.diagnose(quiet_trainer(), module, data, None, 8, 2, [0.9], False, tmp_path)
    assert all(map(torch.equal, before, module.network.parameter_groups()[0]))
    assert [x.estimator for x in estimates][3:] == [LEARNED_BASELINE, "GAE(0.9)", TD]


# The command.


def test_the_datamodule_of_a_diagnosis_is_left_as_it_is():
    data = RolloutDataModule("CartPole-v1", num_envs=3, num_steps=7)
    diagnosis_collector(data, 2).close()
    changed = data.with_settings(num_envs=1)
    assert (data.num_envs, data.num_steps, data.whole_episodes, data.collector) == (3, 7, False, None)
    assert (changed.num_envs, changed.num_steps, changed.env_id) == (1, 7, "CartPole-v1")
    with pytest.raises(AttributeError, match="nonsense"):
        data.with_settings(nonsense=1)


def test_of_a_checkpoint_everything_lies_in_the_folder_of_its_run(cli, train, tmp_path):
    run = train(tmp_path, "--data.total_steps", 128, "--data.eval_episodes", 1)
    arguments = (
        "--ckpt_path",
        run / "checkpoints/last.ckpt",
        "--batches",
        8,
        "--episodes",
        2,
        "--gae_lambdas",
        "[0.9]",
    )
    finished = cli(tmp_path, "diagnose", *arguments)
    assert finished.returncode == 0, finished.stderr
    assert {path.suffix for path in run.glob("diagnose.*")} == {".csv", ".json", ".png", ".svg"}
    report = json.loads((run / "diagnose.json").read_text())
    assert report["critic"] == "of the checkpoint"
    assert report["env_steps"] == 128
    with (run / "diagnose.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["estimator"] for row in rows] == [*list(EXACT)[:4], "GAE(0.9)", TD]
    assert all(f"\n{row['estimator']} " in finished.stdout for row in rows)
    assert float(rows[0]["snr_low"]) == report["estimators"][0]["snr_interval"][0]
    again = cli(tmp_path, "diagnose", *arguments, "--output", tmp_path / "again")
    assert again.returncode == 0
    assert (tmp_path / "again/diagnose.csv").read_text() == (run / "diagnose.csv").read_text()


RECALL, MASKED = (f"pg_lightning.envs.tasks.toy:pg_lightning/{name}-v0" for name in ("Recall", "MaskedReward"))
CONTINUOUS = "pg_lightning.envs.tasks.toy:pg_lightning/ContinuousContextualReward-v0"


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        (RECALL, ["--model.memory", "gru"]),
        (RECALL, ["--model.memory", "lstm", "--model.shared_torso", "true"]),
        (MASKED, []),
        (CONTINUOUS, ["--model.normalize_values", "true", "--model.head", "squashed_gaussian"]),
        ("CartPole-v1", ["--data.autoreset_mode", "next_step", "--trainer.precision", "64-true"]),
        ("CartPole-v1", ["--data.backend", "vector"]),
    ],
)
def test_every_kind_of_policy_is_diagnosed(cli, tiny, tmp_path, quick, env_id, options):
    arguments = ("--data.env_id", env_id, *options, "--batches", 8, "--episodes", 3)
    finished = cli(tmp_path, "diagnose", "--config", tiny, *arguments)
    assert finished.returncode == 0, finished.stderr
    report = json.loads((tmp_path / "diagnose/diagnose.json").read_text())
    assert report["critic"] == "fitted"
    assert all(np.isfinite(x["variance"]) and x["variance"] > 0 for x in report["estimators"])


def test_an_algorithm_without_critic_is_given_one(quiet_trainer, tmp_path, quick):
    data = RolloutDataModule("CartPole-v1")
    module = REINFORCE(**spaces_of(data), hidden_sizes=[8])
    estimates = command.diagnose(quiet_trainer(), module, data, None, 8, 2, [], False, tmp_path)
    assert [x.estimator for x in estimates] == [
        "episode return",
        "reward-to-go",
        "mean baseline",
        "learned baseline",
        TD,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches", 7], "batches: must be at least 8"),
        (["--episodes", 1], "episodes: must be at least 2"),
        (["--gae_lambdas", "[1.5]"], "gae_lambdas: must be between 0 and 1"),
        (["--ckpt_path", "last"], "ckpt_path: diagnose needs a checkpoint"),
        (["--ckpt_path", "nowhere.ckpt"], "ckpt_path: no file"),
        (["--trainer.devices", 2], "trainer.devices: diagnose runs in one process"),
        (
            ["--data.env_id", "pg_lightning.envs.tasks.toy:pg_lightning/DelayedReward-v0"],
            "data.env_id: the gradient is zero",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(cli, tiny, tmp_path, quick, arguments, message):
    said = complaint(cli(tmp_path, "diagnose", "--config", tiny, "--batches", 8, "--episodes", 2, *arguments))
    assert message in said
