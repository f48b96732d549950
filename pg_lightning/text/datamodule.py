"""The datamodule of text: prompts, their completions by the current policy, and the rewards of these."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from gymnasium import spaces
from lightning.pytorch import LightningDataModule
from lightning.pytorch.plugins.precision import HalfPrecision
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from pg_lightning.class_path import ClassPath
from pg_lightning.collectives import all_gather_object
from pg_lightning.data.dataset import RolloutDataset
from pg_lightning.data.size import require_counts
from pg_lightning.envs import env_seed
from pg_lightning.errors import UserError, require
from pg_lightning.text.collector import CompletionCollector, CompletionEvaluation, Texts
from pg_lightning.text.policy import LanguagePolicy
from pg_lightning.text.prompts import Prompt, read_prompts
from pg_lightning.text.rewards import Rewards
from pg_lightning.text.tokenizer import TokenizerSpec, encode, make_tokenizer

TRAIN, VALIDATE, TEST, PREDICT = range(4)  # the first part of the key of every seed


class TextDataModule(LightningDataModule):
    """Completions of prompts. An env step is a token.

    Args:
        prompts: a list of texts, or of mappings with a `prompt` and other columns for the reward; the path of a JSONL
            file of such mappings; or a class path: see `read_prompts`.
        reward: the class path of a function, or several with weights: see `Rewards`.
        tokenizer: the name of the model, its folder, or `{characters: ...}`: see `make_tokenizer`.
        eval_prompts: of evaluations, as `prompts`; by default the last fifth of `prompts`, which training then does not
            use. Every second one is for `test`, the others for validation.
        num_prompts: of a rollout, per process.
        num_completions: K of each prompt, which are compared with each other.
        max_new_tokens: T, the most tokens of a completion.
        stop: strings with which a completion ends; it always ends with the tokenizer's token for the end.
        total_steps: the budget in tokens of completions, over all processes.
        eval_every_steps: tokens between evaluations; there is always one at the end.
        save_every_steps: tokens between saves of `last.ckpt`, in addition to those after evaluations.
        eval_episodes: prompts of an evaluation, or all that there are for it.
        eval_deterministic: take the most likely tokens in evaluations instead of samples.

    Raises:
        UserError: naming the field and the cure.
    """

    # What other datamodules may choose.
    overlap = False
    whole_episodes = True
    rows_vary = True
    self_play = None
    instance = None
    eval_groups: ClassVar[list[str]] = []
    _train_texts: Texts  # from `setup` on, which knows the model
    _eval_texts: Texts

    def __init__(
        self,
        prompts: str | dict[str, Any] | list[str | dict[str, Any]],
        reward: ClassPath | list[Any],
        tokenizer: TokenizerSpec,
        eval_prompts: str | dict[str, Any] | list[str | dict[str, Any]] | None = None,
        num_prompts: int = 16,
        num_completions: int = 8,
        max_new_tokens: int = 64,
        stop: list[str] | None = None,
        total_steps: int = 1_000_000,
        eval_every_steps: int = 100_000,
        save_every_steps: int | None = None,
        eval_episodes: int = 100,
        eval_deterministic: bool = True,
    ) -> None:
        super().__init__()
        counts = {
            "num_prompts": num_prompts,
            "num_completions": num_completions,
            "max_new_tokens": max_new_tokens,
            "total_steps": total_steps,
            "eval_every_steps": eval_every_steps,
            "save_every_steps": eval_every_steps if save_every_steps is None else save_every_steps,
            "eval_episodes": eval_episodes,
        }
        require_counts(counts)
        self.num_prompts, self.num_completions, self.max_new_tokens = num_prompts, num_completions, max_new_tokens
        self.stop = stop or []
        self.total_steps = total_steps
        self.eval_every_steps, self.save_every_steps = eval_every_steps, save_every_steps
        self.eval_episodes, self.eval_deterministic = eval_episodes, eval_deterministic
        given = prompts["class_path"] if isinstance(prompts, dict) else prompts
        self.env_id = given if isinstance(given, str) else "prompts"  # the title of figures
        self.tokenizer = make_tokenizer(tokenizer)
        self.rewards = Rewards(reward)
        self.prompts = read_prompts("data.prompts", prompts)
        if eval_prompts is None:
            held_out = len(self.prompts) // 5
            if held_out < 2:
                raise UserError(
                    f"data.eval_prompts: a fifth of data.prompts is for evaluations, and there are {len(self.prompts)} "
                    "in all; give at least 10, or eval_prompts"
                )
            self.prompts, self.eval_prompts = self.prompts[:-held_out], self.prompts[-held_out:]
        else:
            self.eval_prompts = read_prompts("data.eval_prompts", eval_prompts)
        for known in (self.prompts, self.eval_prompts):
            self.rewards.require_columns(known)
        self.observation_space = self.action_space = spaces.Discrete(1 + max(self.tokenizer.get_vocab().values()))
        self.collector: CompletionCollector | None = None
        self.episodes_go_on = False
        self._resumed: dict[str, Any] | None = None

    @property
    def num_envs(self) -> int:
        """Completions of a rollout."""
        return self.num_prompts * self.num_completions

    num_columns = num_envs

    @property
    def num_steps(self) -> int:
        """The most tokens of a completion."""
        return self.max_new_tokens

    @property
    def seed(self) -> int:
        """The run's seed."""
        return torch.initial_seed()

    def setup(self, stage: str) -> None:
        """Refuses prompts that do not fit the model, before anything else starts.

        Raises:
            UserError: naming the field.
        """
        if self.trainer is not None and isinstance(self.trainer.precision_plugin, HalfPrecision):
            precision = self.trainer.precision
            raise UserError(f"trainer.precision: {precision} would round rewards too; use bf16-mixed or 16-mixed")
        self._train_texts = self._texts("data.prompts", self.prompts)
        self._eval_texts = self._texts("data.eval_prompts", self.eval_prompts)

    def train_dataloader(self) -> RolloutDataset:
        """Rollouts, each made on request by the current policy."""
        assert self.trainer is not None
        module = cast(Any, self.trainer.lightning_module)
        if self.collector is None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            sizes = self.num_prompts, self.num_completions
            self.collector = CompletionCollector(
                self._train_texts, *sizes, env_seed(self.seed, TRAIN), rank, world_size
            )
            self._go_on(self.collector, rank, world_size)
        collector = cast(Any, self.collector)
        return RolloutDataset(collector, module.actor, self.trainer.strategy, 2 * self.total_steps)

    def _go_on(self, collector: CompletionCollector, rank: int, world_size: int) -> None:
        """Restores the place in the prompts from a checkpoint; reports in one line if it is that of another order."""
        saved, self._resumed = self._resumed, None
        if saved is None:
            return
        known, own, ranks = saved.get("settings", {}), self._settings(), len(saved["ranks"])
        found = [f"{name} was {known.get(name)} and is {own[name]}" for name in own if known.get(name) != own[name]]
        if ranks != world_size:
            found.append(f"the checkpoint was saved by {ranks} processes, this run has {world_size}")
        if found:
            rank_zero_info(f"ckpt_path: {found[0]}; a new order of prompts starts")
        else:
            collector.load_state_dict(saved["ranks"][rank])

    def _settings(self) -> dict[str, str]:
        """What the order of prompts follows from, besides the number of processes."""
        prompts, size = str(len(self.prompts)), str(self.num_prompts)
        return {"number of data.prompts": prompts, "data.num_prompts": size, "seed_everything": str(self.seed)}

    def val_dataloader(self) -> DataLoader[Any]:
        """Completions of the prompts for validation."""
        return self._evaluation(VALIDATE, 0)

    def test_dataloader(self) -> DataLoader[Any]:
        """Completions of prompts that no validation has used."""
        return self._evaluation(TEST, 1)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Completions of the same prompts as for `test`, with their texts."""
        return self._evaluation(PREDICT, 1)

    def _evaluation(self, stream: int, first: int) -> DataLoader[Any]:
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        chosen = range(first, len(self.eval_prompts), 2) or range(len(self.eval_prompts))
        if len(chosen) < self.eval_episodes:
            rank_zero_info(f"data.eval_episodes: there are {len(chosen)} prompts for this evaluation; it uses them all")
        chosen = chosen[: self.eval_episodes]
        require("data.eval_episodes", len(chosen), world_size)
        seed = None if self.eval_deterministic else env_seed(self.seed, stream, rank)
        actor = cast(Any, self.trainer.lightning_module).actor
        dataset = CompletionEvaluation(self._eval_texts, chosen[rank::world_size], actor, self.num_envs, seed)
        return DataLoader(dataset, batch_size=None, generator=torch.Generator())

    def _texts(self, field: str, prompts: list[Prompt]) -> Texts:
        assert self.trainer is not None
        network = cast(Any, self.trainer.lightning_module).network
        if not isinstance(network, LanguagePolicy):
            raise UserError(
                "model.policy: data.prompts needs a language model; set it to pg_lightning.text.LanguagePolicy with "
                "the model in its init_args"
            )
        tokens = encode(self.tokenizer, prompts, network.context - self.max_new_tokens, field, network.vocabulary)
        ends = {self.tokenizer.eos_token_id, *network.ends}
        return Texts(self.tokenizer, prompts, tokens, self.rewards, self.max_new_tokens, self.stop, ends)

    def state_dict(self) -> dict[str, Any]:
        """The place in the prompts of every rank. A collective: all ranks must call it."""
        if self.collector is None:
            return {}
        return {"settings": self._settings(), "ranks": all_gather_object(self.collector.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the place until training starts."""
        self._resumed = state_dict if state_dict.get("ranks") else None

    def teardown(self, stage: str) -> None:
        """Forgets the place."""
        self.collector = None
