"""Ranks: two processes with half of the completions each end as one that has all of them."""

import json
import multiprocessing
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import torch
import warm
import yaml
from interruptions import differences, interrupt_at
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from run_files import load
from torch.utils.data import DataLoader, Dataset
from two_ranks import of, outcomes_of

pytest.importorskip("transformers")

from test_text_runs import CONFIG
from tiny_text import NOTHING, PROMPT, every_completion, make_algorithm, make_rollout

from pg_lightning.algorithms import GRPO, REINFORCE, RLOO

pytestmark = [
    pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the two processes are forked"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*IterableDataset.* has `__len__` defined"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]

N, K = 12, 3  # completions of both ranks, and of one prompt
PENALTY = {"kl_coef": 0.3}
CASES = {
    "REINFORCE": (REINFORCE, {"baseline": "group_mean", "gamma": 1.0, "normalize_advantage": False}),
    "REINFORCE, standardised": (REINFORCE, {"baseline": "group_mean", "gamma": 1.0, "causal": False}),
    "RLOO": (RLOO, {}),
    "RLOO, penalty": (RLOO, PENALTY),
    "RLOO, micro-batches": (RLOO, {**PENALTY, "micro_batch_size": 7}),
    "GRPO, sequence": (GRPO, {"normalizer": "sequence"}),
    "GRPO, tokens": (GRPO, {"normalizer": "tokens", "scale_advantage": False}),
    "GRPO, constant": (GRPO, {"normalizer": "constant"}),
    "GRPO, penalty in the loss": (GRPO, {**PENALTY, "ent_coef": 0.1}),
    "GRPO, penalty in the reward": (GRPO, {**PENALTY, "kl_in": "reward", "kl_estimator": "k1"}),
    "GRPO, epochs": (GRPO, {**PENALTY, "num_epochs": 3, "clip_range": 0.02}),
    "GRPO, micro-batches": (GRPO, {**PENALTY, "num_epochs": 2, "micro_batch_size": 7}),
    **{
        f"GRPO, minibatches, {normalizer}": (
            GRPO,
            {**PENALTY, "num_epochs": 2, "num_minibatches": 2, "normalizer": normalizer},
        )
        for normalizer in ("sequence", "tokens", "constant")
    },
}
FEW = (GRPO, {"num_minibatches": 5, "num_epochs": 2})  # of four columns each


class Rollouts(Dataset):
    """Three rollouts, of all completions or of those of one rank; rank 0 has the short ones."""

    def __init__(self, rank, columns=N):
        mine = slice(None) if rank is None else slice(rank * columns // 2, (rank + 1) * columns // 2)
        self.rollouts = [self.make(seed, mine, columns) for seed in range(3)]

    def make(self, seed, mine, columns):
        generator = torch.Generator().manual_seed(seed)
        every = sorted(every_completion(), key=len)
        halves = every[:4], every[4:]
        numbers = torch.randint(1000, (columns,), generator=generator).tolist()
        chosen = [(half := halves[2 * n >= columns])[i % len(half)] for n, i in enumerate(numbers)]
        rewards = torch.randn(columns, generator=generator)
        prompts = PROMPT.repeat(columns, 1)
        prompts[: columns // 2, 0] = NOTHING  # the ranks' prompts have different lengths
        rollout = make_rollout(chosen[mine], rewards[mine], K, prompts=prompts[mine])
        return replace(rollout, policy_version=seed)

    def __len__(self):
        return len(self.rollouts)

    def __getitem__(self, index):
        return self.rollouts[index]


def order(n, generator=None):
    """In place of a random permutation, one that deals the whole out as it does the halves."""
    columns = torch.arange(n)
    return columns.view(2, 2, -1).transpose(0, 1).flatten() if n == N else columns


def norms_in_double(module):
    """A Llama's own norms are in float32 in any precision, and what is left of them depends on the padding."""
    for part in [*module.modules()]:
        for name, child in [*part.named_children()]:
            if type(child).__name__ == "LlamaRMSNorm":
                norm = torch.nn.RMSNorm(len(child.weight), child.variance_epsilon)
                norm.weight = child.weight
                setattr(part, name, norm)


def learn(algorithm, options, rank=None, columns=N):
    """Weights and metrics after one update per rollout, in double precision."""
    module = make_algorithm(algorithm, lr=0.01, total_steps=10**4, **options)
    norms_in_double(module)
    ranks = {} if rank is None else {"devices": 2, "strategy": DDPStrategy(timeout=timedelta(seconds=60))}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    plain = {"accelerator": "cpu", "enable_model_summary": False, "max_epochs": 1, "log_every_n_steps": 1}
    trainer = Trainer(**quiet, **plain, **ranks, precision="64-true", use_distributed_sampler=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randperm", order)
        trainer.fit(module, DataLoader(Rollouts(rank, columns), batch_size=None))
    assert module.policy_version == 3
    metrics = {name: np.array(float(value)) for name, value in trainer.callback_metrics.items()}
    return {name: x.detach().numpy() for name, x in module.state_dict().items()}, metrics


def cases(rank):
    for name, case in CASES.items():
        yield name, learn(*case, rank)
    yield "few", learn(*FEW, rank, columns=6)


@pytest.fixture(scope="module")
def ranks():
    return outcomes_of(cases)


def assert_equal_bits(one, other):
    for name in one.keys() | other.keys():
        np.testing.assert_array_equal(one[name], other[name], name)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_on_halves_are_one_on_the_whole(name, ranks):
    (weights, metrics), (others, their_metrics) = of(ranks, name)
    assert_equal_bits(weights, others)
    assert_equal_bits(metrics, their_metrics | {"time/steps_per_second": metrics["time/steps_per_second"]})
    whole, whole_metrics = learn(*CASES[name])
    for key, value in whole.items():
        np.testing.assert_allclose(weights[key], value, rtol=1e-10, atol=1e-10, err_msg=key)
    assert metrics.keys() == whole_metrics.keys()
    # A mean over minibatches does not weigh them by their tokens.
    if "minibatches" not in name:
        for key in metrics.keys() - {"time/steps_per_second"}:
            np.testing.assert_allclose(metrics[key], whole_metrics[key], rtol=1e-6, atol=1e-12, err_msg=key)


def test_more_minibatches_than_completions_are_as_many_as_completions(ranks):
    (weights, metrics), (others, _) = of(ranks, "few")
    assert_equal_bits(weights, others)
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Runs a command of the tiny config on two ranks; returns the run's folder."""
    config = tmp_path_factory.mktemp("text") / "tiny_text.yaml"
    config.write_text(yaml.safe_dump(CONFIG))

    def run(folder, *arguments, fails=False):
        folder.mkdir(exist_ok=True)
        ranks = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
        finished = warm.run(["-m", "pg_lightning", *map(str, arguments), *ranks], folder)
        assert (finished.returncode != 0) == fails, finished.stderr
        return folder / "runs/tiny_text/version_0" if arguments[0] == "fit" else folder

    return lambda folder, command, *arguments, **options: run(
        folder, command, *(("--config", config) if command == "fit" else ()), *arguments, **options
    )


@pytest.fixture(scope="module")
def run_of_two(two, tmp_path_factory):
    return two(tmp_path_factory.mktemp("whole"), "fit")


def test_each_rank_has_prompts_of_its_own_and_a_resumed_run_ends_as_if_it_had_not_stopped(two, run_of_two, tmp_path):
    whole = load(run_of_two / "checkpoints/last.ckpt")
    updates, columns = whole["pg_lightning"]["policy_version"], CONFIG["data"]["num_prompts"]
    assert whole["TextDataModule"]["ranks"] == [{"rollouts": updates}] * 2
    assert whole["pg_lightning"]["env_steps"] > 2 * columns * updates
    two(tmp_path, "fit", *interrupt_at(updates - 1), fails=True)
    resumed = two(tmp_path, "fit", "--ckpt_path", "last")
    assert differences(run_of_two, resumed) == []


def test_two_ranks_evaluate_and_predict_every_prompt_once_and_in_order(two, run_of_two):
    from pg_lightning.text.brackets import prompts

    checkpoint = run_of_two / "checkpoints/best.ckpt"
    two(run_of_two, "predict", "--ckpt_path", checkpoint)
    rows = [json.loads(line) for line in (run_of_two / "predict/completions.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == prompts(1, 60)[-12:][1::2][:5]
    two(run_of_two, "test", "--ckpt_path", checkpoint)
    assert json.loads((run_of_two / "test.json").read_text())["episodes"] == 5
