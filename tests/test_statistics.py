import math

import numpy as np
import pytest
import torch

from pg_lightning.learning.metrics import EvaluationEpisodes, TrainingEpisodes, game_results
from pg_lightning.statistics import explained_variance


def test_an_evaluation_gathers_all_episodes_since_the_last_collection():
    metric = EvaluationEpisodes()
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0]))
    metric.update(torch.tensor([3.0]), torch.tensor([30.0]))
    returns, lengths, groups = metric.collect()
    assert returns.tolist() == [1.0, 2.0, 3.0]
    assert lengths.tolist() == [10.0, 20.0, 30.0]
    assert groups.tolist() == [0, 0, 0]


def test_an_evaluation_starts_anew_after_a_collection():
    metric = EvaluationEpisodes()
    metric.update(torch.tensor([1.0]), torch.tensor([10.0]))
    metric.collect()
    metric.update(torch.tensor([2.0]), torch.tensor([20.0]))
    assert [x.tolist() for x in metric.collect()] == [[2.0], [20.0], [0]]


def test_one_episode_is_still_a_vector():
    metric = EvaluationEpisodes()
    metric.update(torch.tensor([1.0]), torch.tensor([10.0]))
    assert [x.shape for x in metric.collect()] == [(1,), (1,), (1,)]


def test_results_of_games_are_shares_of_all_and_of_each_group():
    metric = EvaluationEpisodes()
    metric.update(torch.tensor([2.0, -1.0, 0.0]), torch.ones(3), 0)
    metric.update(torch.tensor([1.0]), torch.ones(1), 2)
    assert game_results(metric.collect(), ["a", "b", "c"]) == {
        "win_rate": 0.5,
        "draw_rate": 0.25,
        "loss_rate": 0.25,
        "win_rate/a": pytest.approx(1 / 3),
        "draw_rate/a": pytest.approx(1 / 3),
        "loss_rate/a": pytest.approx(1 / 3),
        "win_rate/c": 1.0,
        "draw_rate/c": 0.0,
        "loss_rate/c": 0.0,
    }


def test_episodes_of_training_are_those_since_the_last_report():
    episodes = TrainingEpisodes()
    assert [x.shape for x in episodes.all()] == [(0,), (0,)]
    episodes.add(torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0]))
    episodes.add(torch.zeros(0), torch.zeros(0))
    episodes.add(torch.tensor([3.0]), torch.tensor([30.0]))
    assert [x.tolist() for x in episodes.all()] == [[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]
    episodes.clear()
    assert [x.shape for x in episodes.all()] == [(0,), (0,)]


def test_explained_variance_agrees_with_numpy():
    rng = np.random.default_rng(0)
    returns = rng.normal(5, 3, 100)
    values = 0.5 * returns + rng.normal(7, 1, 100)
    expected = 1 - np.var(returns - values) / np.var(returns)
    assert explained_variance(torch.from_numpy(values), torch.from_numpy(returns)).item() == pytest.approx(expected)


def test_explained_variance_of_a_perfect_a_constant_and_an_opposite_critic():
    returns = torch.tensor([1.0, 2.0, 4.0])
    assert explained_variance(returns, returns).item() == 1
    assert explained_variance(torch.full((3,), 9.0), returns).item() == pytest.approx(0, abs=1e-6)
    assert explained_variance(-returns, returns).item() == pytest.approx(-3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("returns", [[], [3.0], [3.0, 3.0, 3.0]], ids=["none", "one", "all equal"])
def test_explained_variance_is_nan_where_the_returns_do_not_vary(returns):
    returns = torch.tensor(returns)
    assert math.isnan(explained_variance(torch.arange(len(returns)).float(), returns).item())


def test_explained_variance_is_nan_for_equal_returns_that_have_no_exact_mean():
    assert math.isnan(explained_variance(torch.arange(777).float(), torch.full((777,), 0.1)).item())
