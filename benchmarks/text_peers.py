"""Text beside TRL: its losses against ours on the same completions, and the speed of GRPO of both, on a CPU.

    pip install --target trlsite --no-deps trl datasets accelerate pyarrow pandas dill multiprocess xxhash psutil
    PYTHONPATH=trlsite python benchmarks/text_peers.py
    PYTHONPATH=trlsite python benchmarks/text_peers.py --only losses

Losses and gradients must agree to 1e-5 under the options that `text_losses.py` lists; else the exit status is 1.

Speed is that of the model of `configs/grpo_text.yaml`, with random weights, and of one with 32 times the weights, whose
completions are long. Both systems read the same folder, complete the same prompts once, by samples at temperature 1
until the end of the text or the limit, keep old and reference log-probabilities, and take the same number of gradient
steps with fused Adam on the same number of completions. The learning rate is so small that the lengths of completions
stay those of the model: the numbers of tokens are equal but for chance. Every run is a process of its own; those of
both systems alternate, and ratios are taken within a repeat. The clock starts after the last update of the warm-up and
counts CPU time, as waiting for other processes is not the systems' affair. `generated` divides tokens by the time in
the function that completes prompts (in TRL `generate` of `transformers`), `learned` by the rest: rewards, advantages,
log-probabilities, gradient steps, the trainer. Memory is the largest resident set of a process that imports only its
own system, and by how much it is above that before training.

What differs: TRL generates until the longest completion has ended, where ours leave the batch; it pads minibatches to
the longest completion of a rollout, we to that of the minibatch; it draws and shuffles in its own order; and it
computes the entropy of every step, where we compute it when it is logged.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import logging
import os
import string
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import listed, machine, positive, refuse_unknown, versions
from trl_options import COMMON, GRPO_ONLY, brackets, dataset

INSTALL = (
    "pip install --target trlsite --no-deps trl datasets accelerate pyarrow pandas dill multiprocess xxhash psutil"
)
NEEDED = ("trl", "datasets", "accelerate")
CHARACTERS = "()[]{}|"
LETTERS = string.ascii_letters + string.digits + "+-*/=<>.,:;!?"  # so that the end of a text is unlikely
SYSTEMS = ("pg_lightning", "TRL")


@dataclass
class Size:
    """Of a model and of its rollouts; rollouts are those that are timed, after those of the warm-up."""

    model: dict[str, int]
    num_prompts: int
    num_completions: int
    max_new_tokens: int
    num_minibatches: int
    rollouts: int
    warm_up: int = 2
    characters: str = CHARACTERS

    @property
    def prompts(self) -> int:
        return self.num_prompts * (self.warm_up + self.rollouts)


SIZES = {
    "small": Size({"hidden_size": 64, "num_layers": 2, "num_heads": 2, "context": 32}, 32, 8, 12, 4, 8),
    "larger": Size(
        {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "context": 96}, 8, 8, 64, 2, 2, 1, CHARACTERS + LETTERS
    ),
}


@dataclass
class Clock:
    """Tokens and CPU seconds of every rollout, and how many of the seconds are generation."""

    tokens: list[int] = field(default_factory=list)
    generation: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def timed(self, complete: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            start = time.process_time()
            found = complete(*arguments, **named)
            self.generation.append(time.process_time() - start)
            return found

        return wrapped

    def lap(self) -> None:
        self.ends.append(time.process_time())

    def report(self, warm_up: int) -> dict[str, float]:
        """Of the rollouts after the warm-up."""
        assert len(self.tokens) == len(self.generation) == len(self.ends), "a call that is no rollout was timed"
        seconds = self.ends[-1] - self.ends[warm_up - 1]
        generation, tokens = sum(self.generation[warm_up:]), sum(self.tokens[warm_up:])
        return {
            "tokens": tokens,
            "seconds": seconds,
            "generated": tokens / generation,
            "learned": tokens / (seconds - generation),
            "both": tokens / seconds,
        }


def run_ours(size: Size, folder: Path, seed: int, clock: Clock) -> float:
    """`fit`; returns MiB of the resident set before it."""
    from checks import trainer
    from lightning.pytorch import Callback, seed_everything
    from lightning.pytorch.loggers import CSVLogger

    from pg_lightning.algorithms import GRPO
    from pg_lightning.text import TextDataModule, collector

    class Laps(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            clock.tokens.append(batch.env_steps)
            clock.lap()
            trainer.should_stop = len(clock.ends) == size.warm_up + size.rollouts

    collector.complete = clock.timed(collector.complete)
    seed_everything(seed, verbose=False)
    data = TextDataModule(
        prompts=brackets().prompts(1, size.prompts),
        eval_prompts=["(|", "[|"],
        reward="pg_lightning.text.brackets.reward",
        tokenizer=str(folder),
        num_prompts=size.num_prompts,
        num_completions=size.num_completions,
        max_new_tokens=size.max_new_tokens,
        total_steps=10**9,
        eval_every_steps=10**9,
    )
    policy = {"class_path": "pg_lightning.text.LanguagePolicy", "init_args": {"model": str(folder)}}
    model = GRPO(
        observation_space=data.observation_space,
        action_space=data.action_space,
        policy=policy,
        lr=LR,
        max_grad_norm=1.0,
        num_minibatches=size.num_minibatches,
        kl_coef=0.01,
        total_steps=10**9,
    )
    before = resident("VmRSS")
    log = CSVLogger(folder / "log")
    options = {
        "log_every_n_steps": 5,
        "max_epochs": -1,
        "limit_val_batches": 0,
    }  # completions of evaluations do not count
    trainer("cpu", callbacks=[Laps()], logger=log, **options).fit(model, data)
    return before


def run_trl(size: Size, folder: Path, seed: int, clock: Clock) -> float:
    """`GRPOTrainer.train`; returns MiB of the resident set before it."""
    import trl
    from transformers import AutoTokenizer, TrainerCallback

    task = brackets()

    class Laps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % size.num_minibatches == 0:
                clock.lap()

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        clock.tokens.append(sum(map(len, completion_ids)))
        return list(task.reward(prompts, completions))

    settings = trl.GRPOConfig(
        output_dir=str(folder / "out"),
        seed=seed,
        per_device_train_batch_size=size.num_prompts * size.num_completions // size.num_minibatches,
        steps_per_generation=size.num_minibatches,
        gradient_accumulation_steps=1,
        num_generations=size.num_completions,
        max_completion_length=size.max_new_tokens,
        max_steps=size.num_minibatches * (size.warm_up + size.rollouts),
        beta=0.01,
        loss_type="grpo",
        scale_rewards="group",
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_epsilon=1e-5,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        logging_steps=5 * size.num_minibatches,
        **COMMON,
        **GRPO_ONLY,
    )
    trainer: Any = trl.GRPOTrainer(
        model=str(folder),
        reward_funcs=reward,
        args=settings,
        train_dataset=dataset(task.prompts(1, size.prompts)),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[Laps()],
    )
    trainer.model.generate = clock.timed(trainer.model.generate)
    before = resident("VmRSS")
    trainer.train()
    return before


LR = 1e-6
RUNS = {"pg_lightning": run_ours, "TRL": run_trl}


def resident(field: str) -> float:
    """MiB: `VmRSS` now, `VmHWM` at most. NaN on systems without /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), float("nan"))


def run_here(system: str, size: Size, folder: Path, seed: int) -> dict[str, float]:
    """One run, in this process."""
    clock = Clock()
    before = RUNS[system](size, folder, seed, clock)
    peak = resident("VmHWM")
    return clock.report(size.warm_up) | {"peak": peak, "above": peak - before}


def measure(name: str, size: Size, repeats: int, threads: int) -> list[dict[str, dict[str, float]]]:
    """Results by system, of every repeat; a process per run.

    Raises:
        SystemExit: with the last line of a run that failed.
    """
    from pg_lightning.text.models import make_model
    from pg_lightning.text.tokenizer import make_tokenizer

    tokenizer = make_tokenizer({"characters": size.characters})
    found = []
    for repeat in range(repeats):
        results = {}
        for system in SYSTEMS if repeat % 2 == 0 else SYSTEMS[::-1]:
            with tempfile.TemporaryDirectory() as folder:
                torch.manual_seed(repeat)
                make_model(size.model, len(tokenizer)).save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                command = [sys.executable, __file__, "--run", system, name, folder, str(repeat)]
                command += ["--threads", str(threads)]
                done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"error: {system}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
            results[system] = json.loads(done.stdout.strip().splitlines()[-1])
        found.append(results)
    return found


COLUMNS = {
    "both": "tokens/CPU s",
    "generated": "generated",
    "learned": "learned",
    "tokens": "tokens",
    "peak": "peak MiB",
    "above": "above start",
}


def table(found: list[dict[str, dict[str, float]]]) -> str:
    """Markdown: medians, and the median of the ratios within a repeat with the smallest and the largest."""
    lines = [f"| system | {' | '.join(COLUMNS.values())} |", "|---|" + "--:|" * len(COLUMNS)]
    for system in SYSTEMS:
        medians = [np.median([results[system][name] for results in found]) for name in COLUMNS]
        lines.append(f"| {system} | " + " | ".join(f"{median:,.0f}" for median in medians) + " |")
    ratios = [[results[SYSTEMS[0]][name] / results[SYSTEMS[1]][name] for results in found] for name in COLUMNS]
    cells = [f"{np.median(x):.2f} [{min(x):.2f}, {max(x):.2f}]" for x in ratios]
    lines.append(f"| ratio | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["losses", "speed"], help="one part (default: both)")
    parser.add_argument("--sizes", nargs="+", metavar="NAME", default=[*SIZES], help=f"of {', '.join(SIZES)}")
    parser.add_argument("--repeats", type=positive, default=3, help="runs of each system (default: 3)")
    parser.add_argument("--threads", type=positive, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("--json", type=Path, help="where to write the numbers, of every repeat too")
    parser.add_argument(
        "--run", nargs=4, help=argparse.SUPPRESS
    )  # system, size, folder and seed, in a process of its own
    arguments = parser.parse_args()
    refuse_unknown(parser, "--sizes", arguments.sizes, SIZES)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        parser.exit(2, f"error: {missing[0]} is not installed; {INSTALL}, then PYTHONPATH=trlsite\n")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if arguments.run:
        system, name, folder, seed = arguments.run
        print("\n" + json.dumps(run_here(system, SIZES[name], Path(folder), int(seed))))
        return

    found = {**versions(), **{name: importlib.metadata.version(name) for name in ("transformers", *NEEDED)}}
    report: dict[str, Any] = {"versions": found, "machine": machine(), "speed": {}}
    print(f"{listed(found)}\n{listed(report['machine'])}\n", flush=True)
    agree = True
    if arguments.only != "speed":
        import text_losses

        report["losses"] = text_losses.compare()
        agree = all(row["agrees"] for row in report["losses"])
        print(text_losses.table(report["losses"]) + "\n", flush=True)
    for name in arguments.sizes if arguments.only != "losses" else []:
        report["speed"][name] = measure(name, SIZES[name], arguments.repeats, arguments.threads)
        print(f"{name}: {SIZES[name]}\n\n{table(report['speed'][name])}\n", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if not agree:
        parser.exit(1, f"error: losses or gradients differ by more than {text_losses.TOLERANCE}\n")


if __name__ == "__main__":
    main()
