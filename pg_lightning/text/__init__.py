"""Text: prompts, and the rewards of what a language model makes of them."""

from pg_lightning.text.prompts import Prompt, read_prompts
from pg_lightning.text.rewards import Rewards

__all__ = ["Prompt", "Rewards", "read_prompts"]
