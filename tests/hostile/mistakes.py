"""Mistakes on the command line, each with the beginning of the line that it must end in.

A mistake is the arguments of `fit` beside a config that is right. Two generators make most of them: wrong values for
every number of a group of options, and wrong names for every option that holds a name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Mistake(NamedTuple):
    """Arguments, the beginning of the line, and the exit status."""

    arguments: tuple[str, ...]
    line: str
    status: int = 2


COUNTS = ("num_envs", "num_steps", "total_steps", "eval_every_steps", "save_every_steps", "eval_episodes")
CALLBACKS = "--trainer.callbacks"
WRAPPERS = "--data.wrappers"
REWARD = "gymnasium.wrappers.TransformReward"


def all_mistakes() -> list[Mistake]:
    """Every mistake, in a fixed order."""
    return [*_numbers(), *_names(), *_environments(), *_wrappers(), *_callbacks(), *_trainer(), *_games()]


def _numbers() -> Iterator[Mistake]:
    for name in (*COUNTS, "eval_max_episode_steps"):
        key = f"data.{name}"
        yield Mistake((f"--{key}", "0"), f"{key}: must be at least 1, got 0")
        yield Mistake((f"--{key}", "-7"), f"{key}: must be at least 1, got -7")
        yield Mistake((f"--{key}", "1" + "0" * 30), f"{key}: must be between 1 and ")
        yield Mistake((f"--{key}", "many"), f"{key}: expected int")
    for key in ("model.gamma", "model.gae_lambda"):
        for value in ("-0.1", "1.1", ".nan"):
            yield Mistake((f"--{key}", value), f"{key}: must be ")
    for key in ("model.lr", "model.vf_coef", "model.clip_range", "model.max_grad_norm"):
        for value in ("-1", ".nan"):
            yield Mistake((f"--{key}", value), f"{key}: must be ")
    for key in ("model.num_epochs", "model.num_minibatches", "model.micro_batch_size", "model.hidden_sizes"):
        yield Mistake((f"--{key}", "[0]" if key.endswith("sizes") else "0"), f"{key}: must be at least 1, got 0")
    for seed in ("-1", "99999999999"):
        yield Mistake(("--seed_everything", seed), f"seed_everything: {seed} is not in bounds")
    yield Mistake(("--data.num_steps", "1000000000"), "data.num_steps: a rollout of 1000000000 steps")
    yield Mistake(
        ("--data.num_envs", "1000000", "--data.backend", "async"), "data.num_envs: backend async starts 1000000"
    )
    yield Mistake(("--model.hidden_sizes", "[1000000, 1000000]"), "out of memory: ")


def _names() -> Iterator[Mistake]:
    choices = ("data.backend", "data.autoreset_mode", "model.lr_schedule", "model.clip_schedule")
    for key in choices:
        for value in ("nope", "3", "[a]"):
            yield Mistake((f"--{key}", value), f"{key}: ")
    for key in ("data.nope", "model.nope", "trainer.nope"):
        yield Mistake((f"--{key}", "1"), f"{key}: unknown key")
    for value in ("nope.Nope", "torch.nn.Linear", "pg_lightning.algorithms.Nope"):
        yield Mistake(("--model", value), "model: ")
    for value in ("nope", "nope.Nope", "3"):
        yield Mistake((CALLBACKS, value), "trainer.callbacks: ")
        yield Mistake(("--trainer.logger", value), "trainer.logger: ")


def _environments() -> Iterator[Mistake]:
    for value in ("CartPol-v1", "nope:Nope-v0", "CartPole-v99", "os:Nope-v0", ":", "a b"):
        yield Mistake(("--data.env_id", value), "data.env_id: ")
    for value in ("{size: 5}", "{render_mode: nope, x: 1}"):
        yield Mistake(("--data.env_kwargs", value), "data.env_kwargs: ")
    yield Mistake(("--data.train_env_kwargs", "{size: 5}"), "data.train_env_kwargs: ")
    fails = ("--data.env_id", "failing_envs:Fails-v0", "--data.env_kwargs")
    for backend in ("sync", "vector"):
        for deed in ("raises", "leaves", "interrupts"):
            for where in ("init", "reset", "step"):
                arguments = (*fails, f"{{deed: {deed}, where: {where}}}", "--data.backend", backend)
                yield Mistake(arguments, "data.env_id: ", 1)
    yield Mistake(("--data.env_id", "failing_envs:Fails-v0"), "data.env_kwargs: cannot make ")
    yield Mistake((*fails, "{deed: nope, where: reset}"), "data.env_id: 'failing_envs:Fails-v0' cannot be made: ", 1)
    for env_id in ("TextObservation", "IntegerBoxAction"):
        yield Mistake(("--data.env_id", f"odd_envs:{env_id}-v0"), "data.env_id: ")
    for backend in ("device", "simulator", "vector"):
        yield Mistake(("--data.env_id", "odd_envs:Flat-v0", "--data.backend", backend), "data.")


def _wrappers() -> Iterator[Mistake]:
    for value in ("[nope.Nope]", "[3]", "['']", "[os.getcwd]", "[gymnasium.wrappers]", "[{init_args: {a: 3}}]"):
        yield Mistake((WRAPPERS, value), "data.wrappers: ")
    for func in ("nope.sign", "numpy.sing", "sign"):
        value = f"[{{class_path: {REWARD}, init_args: {{func: {func}}}}}]"
        yield Mistake((WRAPPERS, value), f"data.wrappers: cannot import '{func}': ")
    for init_args in ("3", "{nope: 1}", "{}"):
        value = f"[{{class_path: {REWARD}, init_args: {init_args}}}]"
        yield Mistake((WRAPPERS, value), f"data.wrappers: {REWARD} cannot wrap ")
    for name in ("NormalizeObservation", "NormalizeReward"):
        yield Mistake((WRAPPERS, f"[gymnasium.wrappers.{name}]"), "data.wrappers: ")


def _callbacks() -> Iterator[Mistake]:
    refused = {
        "EarlyStopping": "{monitor: val/return_man}",
        "GradientAccumulationScheduler": "{scheduling: {0: 2}}",
        "LearningRateFinder": "{}",
        "BackboneFinetuning": "{}",
    }
    for name, init_args in refused.items():
        yield Mistake((CALLBACKS, f"[{{class_path: {name}, init_args: {init_args}}}]"), "trainer.callbacks: ")
    yield Mistake((CALLBACKS, "[{class_path: Timer, init_args: {duration: soon}}]"), "`Timer(duration='soon')` is not")


def _trainer() -> Iterator[Mistake]:
    values = {
        "accelerator": ("foo", "gpu", "tpu"),
        "devices": ("0", "none"),
        "strategy": ("nope",),
        "precision": ("8",),
        "max_time": ("soon",),
        "max_steps": ("-5",),
        "max_epochs": ("-3",),
        "profiler": ("nope",),
        "num_nodes": ("0",),
        "limit_train_batches": ("-1", "1.5"),
        "limit_val_batches": ("-1", "1.5"),
        "fast_dev_run": ("-1",),
        "benchmark": ("maybe",),
        "plugins": ("nope",),
        "default_root_dir": ("/dev/null", "/proc/nope"),
    }
    for name, wrong in values.items():
        for value in wrong:
            yield Mistake((f"--trainer.{name}", value), "trainer")
    yield Mistake(("--trainer.gradient_clip_val", "1"), "Automatic gradient clipping is not supported")
    yield Mistake(("--trainer.accumulate_grad_batches", "2"), "Automatic gradient accumulation is not supported")


def _games() -> Iterator[Mistake]:
    program = '{"class_path": "pg_lightning.games.gtp.GTPOpponent", "init_args": {"command": "no-such"}}'
    tictactoe = "--data.env_id", "TicTacToe-v1", "--data.self_play"
    yield Mistake(("--data.self_play", "{}"), "data.env_id: no game 'CartPole-v1'; with data.self_play it is ")
    settings = [
        ('{"both_seats": 1.5}', "data.self_play.both_seats: must be between 0 and 1, got 1.5"),
        ('{"snapshot_every_steps": 0}', "data.self_play.snapshot_every_steps: must be at least 1, got 0"),
        ('{"eval_opponents": []}', "data.self_play.eval_opponents: name at least one opponent"),
        ('{"eval_opponents": ["nobody"]}', "data.self_play.eval_opponents: cannot import 'nobody'"),
        ('{"both_seats": 0, "opponents": ["runs/none"]}', "data.self_play.opponents: no "),
        ('{"sampling": "best"}', "data.self_play"),
        (
            f'{{"both_seats": 0, "opponents": [{program}]}}',
            "data.self_play: cannot start 'no-such': no program 'no-such'",
        ),
    ]
    for value, line in settings:
        yield Mistake((*tictactoe, value), line)
    for option, value in (("wrappers", f"[{REWARD}]"), ("backend", "async"), ("autoreset_mode", "next_step")):
        yield Mistake((*tictactoe, "{}", f"--data.{option}", value), f"data.{option}: data.self_play plays games ")
