"""Language models: from the hub, from a folder, or new ones of any size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pg_lightning.errors import UserError, cause_of, require

ModelSpec = str | dict[str, Any]
SIZES = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "context": 256}
EXTRA = 'pip install "pg_lightning[text]"'


def make_model(spec: ModelSpec, vocabulary: int) -> Any:
    """A causal language model without dropout.

    Args:
        spec: the name of a model of the hub or a folder; `{name: ..., **arguments of from_pretrained}`, such as
            `gguf_file`, `revision` or `dtype`; or the sizes of a new model with random weights: any of `hidden_size`
            (64), `num_layers` (2), `num_heads` (2) and `context` (256), the most tokens.
        vocabulary: number of tokens of a new model.

    Raises:
        UserError: if there is no such model.
    """
    transformers = imported()
    if isinstance(spec, Mapping) and "name" not in spec:
        return _new_model(spec, vocabulary)
    name, arguments = (spec, {}) if isinstance(spec, str) else (spec["name"], {**spec})
    arguments.pop("name", None)
    refuse_code("model.policy.model", arguments)
    arguments = {"dtype": "float32", "attn_implementation": "sdpa"} | arguments
    try:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(name, **arguments)
    except Exception as error:  # of many kinds: no network, no such name, no such file, damaged
        raise UserError(f"model.policy.model: cannot read {name!r}: {brief(error)}") from error
    if not hasattr(model.config.get_text_config(), "max_position_embeddings"):
        raise UserError(f"model.policy.model: the config of {name!r} has no max_position_embeddings, its longest text")
    return without_dropout(model)


def refuse_code(field: str, arguments: Mapping[str, Any]) -> None:
    """Refuses arguments of `from_pretrained` that would run code from the hub: a config may come from anyone.

    Raises:
        UserError: naming the field.
    """
    if arguments.get("trust_remote_code"):
        raise UserError(f"{field}: trust_remote_code would run code from the hub; take a model of transformers itself")


def imported() -> Any:
    """The package `transformers`.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"data.prompts: text needs transformers, which is not installed; {EXTRA}") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def without_dropout(model: nn.Module) -> nn.Module:
    """The model, with every probability of dropout set to 0."""
    for module in model.modules():
        for name, value in [*vars(module).items()]:
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def brief(error: BaseException) -> str:
    """The first line of an error, shortened."""
    text = str(error).strip().splitlines()
    return text[0][:200] if text else cause_of(error)


def _new_model(sizes: Mapping[str, Any], vocabulary: int) -> Any:
    """A Llama (Touvron et al. 2023): rotary positions, gated layers, whose input and output embeddings are one."""
    if unknown := [*(sizes.keys() - SIZES.keys())]:
        raise UserError(f"model.policy.model: no size {unknown[0]!r}; sizes are {', '.join(SIZES)}")
    given = SIZES | dict(sizes)
    for name, size in given.items():
        require(f"model.policy.model.{name}", size, 1)
    if given["hidden_size"] % (2 * given["num_heads"]):
        raise UserError("model.policy.model.hidden_size: must be a multiple of twice num_heads")
    transformers = imported()
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=given["hidden_size"],
        intermediate_size=4 * given["hidden_size"],
        num_hidden_layers=given["num_layers"],
        num_attention_heads=given["num_heads"],
        num_key_value_heads=given["num_heads"],
        max_position_embeddings=given["context"],
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    return without_dropout(transformers.LlamaForCausalLM(config))
