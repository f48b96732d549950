"""Tokenizers: of a model, or of single characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pg_lightning.errors import UserError
from pg_lightning.text.models import brief, imported, refuse_code
from pg_lightning.text.policy import NOTHING
from pg_lightning.text.prompts import Prompt

TokenizerSpec = str | dict[str, Any]
EOS = "<eos>"


def make_tokenizer(spec: TokenizerSpec) -> Any:
    """A tokenizer of `transformers` with a token for the end of a text.

    Args:
        spec: the name of a model of the hub or a folder; `{name: ..., **arguments of from_pretrained}`, such as
            `gguf_file`; or `{characters: "0123456789+="}`, of one token per character.

    Raises:
        UserError: if there is none, or it has no such token.
    """
    transformers = imported()
    if isinstance(spec, Mapping) and "characters" in spec:
        return _of_characters(str(spec["characters"]))
    name, arguments = (spec, {}) if isinstance(spec, str) else (spec.get("name"), {**spec})
    arguments.pop("name", None)
    refuse_code("data.tokenizer", arguments)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **arguments)
    except Exception as error:  # of many kinds: no network, no such name, no such file, damaged
        raise UserError(f"data.tokenizer: cannot read {name!r}: {brief(error)}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"data.tokenizer: {name!r} has no token for the end of a text, so completions would never end; set its "
            "eos_token, as in {name: ..., eos_token: ...}"
        )
    return tokenizer


def encode(
    tokenizer: Any, prompts: Sequence[Prompt], longest: int, field: str, vocabulary: int | None = None
) -> list[Tensor]:
    """The tokens of prompts, `[P_i]` each; those of chats in the form that the tokenizer's template has for them.

    Args:
        tokenizer: from `make_tokenizer`.
        prompts: texts or chats.
        longest: the most tokens of one.
        field: the key in the config, for the error message.
        vocabulary: number of tokens of the model; by default as many as the tokenizer has.

    Raises:
        UserError: naming the first prompt that is empty, too long, or has characters that the tokenizer does not know.
    """
    found = []
    for number, prompt in enumerate(prompts):
        what = f"{field}: prompt {number + 1} ({prompt.shortened()})"
        if isinstance(prompt.text, str):
            tokens = tokens_of(tokenizer, prompt.text, what)
        elif tokenizer.chat_template is None:
            raise UserError(f"{what} is a chat, and the tokenizer has no template for chats; make it a text")
        else:
            try:
                text = tokenizer.apply_chat_template(prompt.text, tokenize=False, add_generation_prompt=True)
            except Exception as error:  # a template may refuse roles, by an error of Jinja
                raise UserError(f"{what}: the tokenizer's template refuses it: {brief(error)}") from error
            tokens = tokens_of(tokenizer, text, what, add_special_tokens=False)
        if not tokens:
            raise UserError(f"{what} has no tokens; a prompt needs one at least")
        if len(tokens) > longest:
            raise UserError(
                f"{what} has {len(tokens)} tokens; with data.max_new_tokens the model's context has room for {longest}"
            )
        if vocabulary is not None and max(tokens) >= vocabulary:
            raise UserError(
                f"{what} has the token {max(tokens)}, and the model knows {vocabulary}; name the same model in "
                "data.tokenizer and in model.policy"
            )
        found.append(torch.tensor(tokens))
    return found


def tokens_of(tokenizer: Any, text: str, what: str, **options: bool) -> list[int]:
    """The tokens of a text.

    Raises:
        UserError: naming the text by `what`, if it has characters that the tokenizer does not know.
    """
    try:
        tokens: list[int] = tokenizer(text, **options).input_ids
    except Exception as error:  # of the tokenizer's own kind
        raise UserError(f"{what} has characters that data.tokenizer does not know; add them") from error
    return tokens


def aligned(prompts: Sequence[Tensor]) -> Tensor:
    """Prompts `[M, P]` as long as the longest, aligned at their ends, with `NOTHING` before them."""
    longest = max(len(prompt) for prompt in prompts)
    rows = torch.full((len(prompts), longest), NOTHING)
    for row, prompt in zip(rows, prompts, strict=True):
        row[longest - len(prompt) :] = prompt
    return rows


def _of_characters(characters: str) -> Any:
    """One token per character, and one for the end; none for other characters, since a policy could draw it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    if not characters or len(set(characters)) < len(characters):
        raise UserError("data.tokenizer: characters must be different, and one at least")
    vocabulary = {token: i for i, token in enumerate([EOS, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return imported().PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)
