"""A checkpoint is data from anyone: damaged ones are refused in one line, and none harms anything but its own run."""

import re
import resource
import shutil
import time
import warnings
from types import SimpleNamespace

import checkpoints
import pytest
import torch
from checkpoints import CASES, REFUSED, SAME, UNHARMED
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import pg_lightning
from pg_lightning import PPO, RolloutDataModule, UserError
from pg_lightning.callbacks import ContinuedMetrics, EvaluateEverySteps, RandomStates, RunCheckpoint
from pg_lightning.run import MetricsFile, SafeCheckpointIO

FIRST, SECOND = 64, 96  # env steps of the run, and after it is resumed
NAMED = (
    r"(ckpt_path|path): ('|cannot read '|the checkpoint holds|Rollout)|(model|data)\.\w+: |(policy|space|action_mask): "
)
OPTIONS = {
    "hidden_sizes": [8],
    "num_epochs": 1,
    "num_minibatches": 1,
    "lr_schedule": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 2}},
    "normalize_obs": True,
    "scale_rewards": True,
}


def setting(folder, total_steps, checkpoint=None, purpose="fit"):
    """Trainer, module and data as the command line makes them, for a run in `folder`."""
    torch.manual_seed(1)
    data = RolloutDataModule("CartPole-v1", num_envs=2, num_steps=8, total_steps=total_steps, eval_every_steps=32)
    data.eval_episodes = 2
    module = PPO(
        observation_space=data.observation_space, action_space=data.action_space, total_steps=total_steps, **OPTIONS
    )
    evaluations, metrics = EvaluateEverySteps(), MetricsFile(str(folder), "", "")
    best = {"monitor": "val/return_mean", "mode": "max"}
    callbacks = [
        *(RandomStates(), evaluations, ContinuedMetrics(metrics, checkpoint)),
        *(RunCheckpoint(evaluations, "best", **best), RunCheckpoint(evaluations, "last")),
        *(ModelCheckpoint(filename="own-{step}", **best), ModelCheckpoint(filename="newest-{step}", save_last=True)),
    ]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trains = {"logger": metrics, "callbacks": callbacks, "plugins": [SafeCheckpointIO()], "log_every_n_steps": 1}
    quiet |= trains if purpose == "fit" else {"logger": False}
    return Trainer(accelerator="cpu", max_epochs=-1, **quiet), module, data


def fit(folder, checkpoint):
    trainer, module, data = setting(folder, SECOND, checkpoint)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    return [saved[part] for part in ("state_dict", "optimizer_states", "pg_lightning", "lr_schedulers")]


def evaluate(folder, checkpoint):
    trainer, module, data = setting(folder, SECOND, purpose="test")
    trainer.test(module, datamodule=data, ckpt_path=checkpoint, verbose=False)
    return [module.evaluation[0].tolist(), module.env_steps]


def load(folder, checkpoint):
    policy = pg_lightning.load(checkpoint)
    return [policy.policy.state_dict(), policy.env_steps, policy.predict(policy.observation_space.low * 0 + 0.1)[0]]


USES = {"fit": fit, "test": evaluate, "load": load}


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run, the bytes of its last checkpoint, and what becomes of it where it is used."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    trainer, module, data = setting(folder, FIRST)
    trainer.fit(module, datamodule=data)
    content = (folder / "checkpoints/last.ckpt").read_bytes()
    known = {}
    for use, function in USES.items():
        copy = shutil.copytree(folder, folder.parent / use)
        known[use] = function(copy, copy / "checkpoints/last.ckpt")
    return SimpleNamespace(folder=folder, content=content, known=known)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder, and beside it one that must not change."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("years of work")
    (victim / "weights.ckpt").write_text("weeks of work")
    monkeypatch.chdir(tmp_path)
    return SimpleNamespace(folder=tmp_path, victim=victim)


def content_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def outcome(use, whole, place, content):
    """What became of a checkpoint: the error of a user, the name of another one, or what it was used for."""
    shutil.rmtree(place.folder / "run", ignore_errors=True)
    run = shutil.copytree(whole.folder, place.folder / "run")
    checkpoint = run / "checkpoints/last.ckpt"
    checkpoint.write_bytes(content)
    before, others = content_of(run), content_of(place.victim)
    try:
        found = USES[use](run, checkpoint)
    except UserError as error:
        found = error
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    if isinstance(found, UserError):
        assert re.match(NAMED, str(found)), found
        assert "\n" not in str(found), found
        after = content_of(run)
        assert {path: after.get(path) for path in before} == before
    assert content_of(place.victim) == others
    assert not (place.folder / "PWNED").exists()
    return found


def verdict(use, expected, found, whole):
    if isinstance(found, str):
        return found
    if isinstance(found, UserError):
        return "" if expected in (REFUSED, UNHARMED) else f"refused: {found}"
    if expected == REFUSED:
        return "accepted"
    return "" if expected == UNHARMED or str(found) == str(whole.known[use]) else "another result"


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("group", ["parts", "weights", "optimizers", "schedulers", "loops", "callbacks", "own", "data"])
def test_damaged_checkpoints_are_refused_or_have_the_effect_of_the_whole_one(group, use, whole, place):
    wrong = {}
    for case in getattr(checkpoints, group)():
        expected = getattr(case, use)
        found = outcome(use, whole, place, case.make(whole.content, place.victim))
        if problem := verdict(use, expected, found, whole):
            wrong[case.name] = problem
    assert wrong == {}


@pytest.mark.parametrize(("use", "every"), [("fit", 1), ("test", 10)])
def test_paths_in_a_checkpoint_are_not_followed(use, every, whole, place):
    """Those of its next save in a training; an evaluation saves nothing."""
    wrong = {}
    for case in list(checkpoints.names())[::every]:
        found = outcome(use, whole, place, case.make(whole.content, place.victim))
        if problem := verdict(use, getattr(case, use), found, whole):
            wrong[case.name] = problem
    assert wrong == {}


@pytest.mark.parametrize("use", USES)
def test_files_that_torch_did_not_write_are_refused_at_once(use, whole, place):
    wrong = {}
    for case in checkpoints.files():
        start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = outcome(use, whole, place, case.make(whole.content, place.victim))
        if problem := verdict(use, getattr(case, use), found, whole):
            wrong[case.name] = problem
        if time.monotonic() - start > 10:
            wrong[case.name] = "slow"
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 2**21:  # KiB
            wrong[case.name] = "large"
    assert wrong == {}


def test_there_are_enough_of_them():
    assert len({case.name for case in CASES}) >= 150
    assert len([case for case in CASES if case.fit == SAME]) >= 10
