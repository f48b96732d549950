"""What TRL's trainers of the benchmarks have in common. Imports nothing of ours, whose memory would count as TRL's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

GRPO_ONLY = {"mask_truncated_completions": False, "use_bias_correction_kl": False}
COMMON: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "model_init_kwargs": {"dtype": "float32", "attn_implementation": "sdpa"},
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}


def dataset(prompts: list[str]) -> Any:
    """For TRL. The fingerprint is given, because the one that `datasets` computes needs to pickle a type of pyarrow."""
    import pyarrow
    from datasets import Dataset

    return Dataset(pyarrow.table({"prompt": prompts}), fingerprint="prompts")


def brackets() -> Any:
    """Our module of prompts and rewards, without the package around it."""
    path = Path(__file__).parents[1] / "pg_lightning/text/brackets.py"
    spec = importlib.util.spec_from_file_location("brackets", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
