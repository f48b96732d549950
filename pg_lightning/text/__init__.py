"""Text by policy gradient: a causal language model is the policy, a token an action, a completion an episode."""

from pg_lightning.text.datamodule import TextDataModule
from pg_lightning.text.policy import LanguagePolicy
from pg_lightning.text.prompts import Prompt, read_prompts
from pg_lightning.text.rewards import Rewards
from pg_lightning.text.supervised import SupervisedStart

__all__ = ["LanguagePolicy", "Prompt", "Rewards", "SupervisedStart", "TextDataModule", "read_prompts"]
