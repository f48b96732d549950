"""`python -m pg_lightning export` of a language model: a folder that `transformers` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from pg_lightning.commands.weights import load_weights
from pg_lightning.errors import UserError
from pg_lightning.text import TextDataModule


def export_text(trainer: Trainer, model: Any, data: TextDataModule, ckpt_path: str, folder: Path) -> Path:
    """Writes model and tokenizer, so that `AutoModelForCausalLM.from_pretrained(folder)` continues the same texts.

    The temperature is not in the weights: sample with the one of the config.

    Raises:
        UserError: if the checkpoint cannot be read, or the folder not written.
    """
    load_weights(trainer, model, data, Path(ckpt_path))
    if trainer.is_global_zero:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            language_model, end = model.network.model, data.tokenizer.eos_token_id
            if not model.network.ends:  # of a new model
                language_model.config.eos_token_id = language_model.generation_config.eos_token_id = end
                language_model.generation_config.pad_token_id = end
            language_model.save_pretrained(folder)
            data.tokenizer.save_pretrained(folder)
        except OSError as error:
            raise UserError(f"output: cannot write {str(folder)!r}: {error.strerror or error}") from error
        print(f"export: model and tokenizer written to {folder}; transformers reads the folder by its path")
    return folder
