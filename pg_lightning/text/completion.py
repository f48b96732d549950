"""Completions of prompts by a language model: batched, with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pg_lightning.text.policy import NOTHING, LanguagePolicy, inputs

Ends = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Completions:
    """N completions of at most T tokens.

    Attributes:
        prompts: `[N, P]` tokens, `NOTHING` at the left of shorter ones.
        tokens: `[T, N]`; 0 after the end of a completion.
        log_probs: `[T, N]` log π of the tokens when they were drawn; 0 after the end.
        valid: `[T, N]` bool; the tokens of the completions, with those that end them.
        ended: `[N]` bool; whether a completion ended by itself, before the most tokens.
    """

    prompts: Tensor
    tokens: Tensor
    log_probs: Tensor
    valid: Tensor
    ended: Tensor


def complete(
    policy: LanguagePolicy,
    prompts: Tensor,
    num_completions: int,
    max_new_tokens: int,
    ends: Ends,
    generator: torch.Generator | None,
) -> Completions:
    """Completes each prompt several times.

    A prompt is read once for all its completions. Completions that have ended leave the batch when they are a quarter
    of it.

    Call it without gradients.

    Args:
        policy: the model.
        prompts: `[M, P]` tokens on its device, `NOTHING` at the left of shorter ones.
        num_completions: K of each prompt, in neighbouring columns of the result: N = M K.
        max_new_tokens: T.
        ends: which completions are over after a token: from the tokens `[t, n]` so far of n of them, and their numbers
            `[n]`, to `[n]` bool.
        generator: draws the tokens, on the policy's device; None for the most likely ones.
    """
    device, N = prompts.device, len(prompts) * num_completions
    is_text = prompts != NOTHING
    cache = policy.new_cache()
    first = policy.model(**inputs(prompts, is_text), **cache, logits_to_keep=1)
    for part in cache.values():
        part.batch_repeat_interleave(num_completions)
    logits = first.logits[:, -1].repeat_interleave(num_completions, 0)
    is_text = is_text.repeat_interleave(num_completions, 0)
    tokens = torch.zeros(max_new_tokens, N, dtype=torch.int64, device=device)
    log_probs = torch.zeros(max_new_tokens, N, dtype=policy.distribution(logits[:1]).log_probs.dtype, device=device)
    valid = torch.zeros(max_new_tokens, N, dtype=torch.bool, device=device)
    ended = torch.zeros(N, dtype=torch.bool, device=device)
    columns = torch.arange(N, device=device)  # of the completions in the batch
    for t in range(max_new_tokens):
        pi = policy.distribution(logits)
        drawn = pi.mode if generator is None else pi.sample(generator)
        going = ~ended[columns]
        tokens[t, columns] = drawn * going
        log_probs[t, columns] = pi.log_prob(drawn) * going
        valid[t, columns] = going
        ended[columns] |= going & ends(tokens[: t + 1, columns], columns)
        going = ~ended[columns]
        left = int(going.sum())
        if not left or t + 1 == max_new_tokens:
            break
        is_text = torch.cat([is_text, going[:, None]], 1)
        if left <= 0.75 * len(columns):
            kept = going.nonzero().flatten()
            for part in cache.values():
                part.batch_select_indices(kept)
            columns, drawn, is_text = columns[kept], drawn[kept], is_text[kept]
        new = {"input_ids": drawn[:, None], "position_ids": is_text.sum(1, keepdim=True) - 1}
        step = policy.model(**new, attention_mask=is_text.long(), use_cache=True, **cache)
        logits = step.logits[:, -1]
    return Completions(prompts.repeat_interleave(num_completions, 0), tokens, log_probs, valid, ended)
