"""Reference methods: the same episodes and budget for all, and what each of them learns."""

import csv
import sys

import numpy as np
import pytest
import yaml

from pg_lightning.commands.reference import reference
from pg_lightning.commands.references import REFERENCES, policy_search
from pg_lightning.commands.references.evaluations import Evaluations
from pg_lightning.data import RolloutDataModule
from pg_lightning.errors import UserError

DATA = {"env_id": "CartPole-v1", "total_steps": 400, "eval_every_steps": 200, "eval_episodes": 5}
PENDULUM = {"env_id": "Pendulum-v1", "total_steps": 800, "eval_every_steps": 400, "eval_episodes": 2}
SEARCHES = ["hill_climbing", "simulated_annealing", "cma_es"]


def rows_of(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def returns_of(folder):
    return [float(row["val/return_mean"]) for row in rows_of(folder)]


def require_package_of(method):
    if method == "cma_es":
        pytest.importorskip("cma")


def test_chance_is_evaluated_on_the_episodes_of_the_seed(tmp_path):
    for name, seed in (("a", 1), ("again", 1), ("other", 2)):
        reference("random", DATA, seed, tmp_path / name, {})
    a, again, other = (rows_of(tmp_path / name) for name in ("a", "again", "other"))
    assert a == again != other
    assert [row["step"] for row in a] == ["400"]
    assert 8 <= float(a[0]["val/return_mean"]) <= 60
    assert yaml.safe_load((tmp_path / "a/config.yaml").read_text())["model"]["class_path"] == "random policy"


def test_dqn_learns_and_is_evaluated_as_often_as_the_others(tmp_path):
    pytest.importorskip("stable_baselines3")
    data = {**DATA, "total_steps": 3000, "eval_every_steps": 1500}
    settings = {"learning_rate": 2.3e-3, "learning_starts": 100, "train_freq": 64, "gradient_steps": 64}
    reference("dqn", data, 1, tmp_path, {**settings, "target_update_interval": 10, "exploration_fraction": 0.3})
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == ["1500", "3000"]
    assert float(rows[-1]["val/return_mean"]) > 60  # chance: 22
    with pytest.raises(UserError, match=r"^dqn: .*no_such"):
        reference("dqn", data, 1, tmp_path, {"no_such": 1})


def test_sac_learns_continuous_actions_and_refuses_others(tmp_path):
    pytest.importorskip("stable_baselines3")
    data = {**PENDULUM, "total_steps": 4000, "eval_every_steps": 2000, "eval_episodes": 10}
    small = {"learning_rate": 3e-3, "learning_starts": 200, "policy_kwargs": {"net_arch": [32, 32]}, "batch_size": 64}
    reference("sac", data, 1, tmp_path, {**small, "buffer_size": 4000})
    assert [row["step"] for row in rows_of(tmp_path)] == ["2000", "4000"]
    assert returns_of(tmp_path)[-1] > -900  # chance: −1200
    with pytest.raises(UserError, match=r"^sac: "):
        reference("sac", DATA, 1, tmp_path, {})


@pytest.mark.parametrize("method", SEARCHES)
def test_a_search_learns_within_its_budget_and_repeats_itself(method, tmp_path):
    require_package_of(method)
    data = {**DATA, "total_steps": 3000, "eval_every_steps": 1000}
    for name, seed in (("a", 1), ("again", 1), ("other", 2)):
        reference(method, data, seed, tmp_path / name, {"network": {"hidden_sizes": [8]}, "step": 0.5})
    a, again, other = (returns_of(tmp_path / name) for name in ("a", "again", "other"))
    assert a == again != other
    steps = [int(row["step"]) for row in rows_of(tmp_path / "a")]
    assert [step // 1000 for step in steps] == [1, 2, 3]
    assert steps[-1] <= 3500  # the last episode is played to its end, of a generation too
    assert max(a[-1], other[-1]) > 60  # chance: 22


@pytest.mark.parametrize("method", SEARCHES)
def test_a_search_controls_continuous_actions(method, tmp_path):
    require_package_of(method)
    reference(method, PENDULUM, 1, tmp_path, {"episodes": 2})
    assert [row["step"] for row in rows_of(tmp_path)] == ["400", "800"]


class Scripted:
    """A search whose candidates cost what a list says."""

    def __init__(self, costs, generator):
        self.costs, self.generator = iter(costs), generator
        self.total, self.left = len(costs), len(costs)
        self.incumbent, self.tried, self.kept = np.zeros(2), [], []

    @property
    def spent(self):
        return 1 - self.left / self.total

    def cost(self, weights):
        self.left -= 1
        self.tried.append(weights)
        self.kept.append(self.incumbent)
        return next(self.costs)


def test_hill_climbing_keeps_what_is_as_good():
    search = Scripted([5.0, 6.0, 4.0, 4.0, 5.0], np.random.default_rng(0))
    policy_search.hill_climbing(search, step=0.1)
    assert search.incumbent is search.tried[3]


def test_annealing_keeps_worse_candidates_less_and_less_often():
    """A cost that is higher by T/2 is kept with a probability near exp(−1/2) at first, and never at the end."""
    kept = np.zeros(2)
    for seed in range(200):
        search = Scripted([0.0, 5.0, *[np.inf] * 96, 0.0, 5.0], np.random.default_rng(seed))
        policy_search.annealing(search, step=0.1, temperature=10.0)
        kept += search.kept[2] is search.tried[1], search.incumbent is search.tried[-1]
    assert 0.5 < kept[0] / 200 < 0.72  # exp(−5 / 9.8) = 0.60
    assert kept[1] == 0  # at T = 0


def test_all_env_steps_of_a_candidate_count():
    data = RolloutDataModule(**{**PENDULUM, "total_steps": 2000})
    search = policy_search.Search(Evaluations(data, 1), episodes=3)
    search.cost(search.incumbent)
    search.close()
    assert search.spent == 600 / 2000


def test_bad_input_is_one_line(tmp_path, monkeypatch):
    for method, arguments, line in [
        ("ppo", {}, "references: there is no 'ppo'; there are dqn, sac, cma_es, "),
        ("hill_climbing", {"temperature": 1.0}, "hill_climbing: got an unexpected keyword argument 'temperature'"),
        ("hill_climbing", {"episodes": 0}, "episodes: must be at least 1, got 0"),
        ("simulated_annealing", {"step": -1.0}, "step: must be at least 0, got -1"),
        ("simulated_annealing", {"step": "much"}, "simulated_annealing: step must be a number, got 'much'"),
        ("simulated_annealing", {"network": {"widths": [8]}}, "simulated_annealing: "),
    ]:
        with pytest.raises(UserError) as raised:
            reference(method, DATA, 1, tmp_path, arguments)
        assert str(raised.value).startswith(line)
        assert "\n" not in str(raised.value)
    for package, method, extra in [("stable_baselines3", "sac", "bench"), ("cma", "cma_es", "cma")]:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf'^{method}: needs .*; pip install "pg_lightning\[{extra}\]"$'):
            reference(method, DATA, 1, tmp_path, {})


def test_labels_differ():
    assert len({reference.label for reference in REFERENCES.values()}) == len(REFERENCES)
