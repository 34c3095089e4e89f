"""What the `demo:code-lm` card states: bits per byte on held-out modules and exact match on held-out items."""

import math
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import nn

from blockexport.models.demos.code_lm import tasks


def bits_per_byte(model: nn.Module, texts: Sequence[str], tokenizer: Tokenizer, context_tokens: int) -> float:
    """Cross entropy of `texts`, cut into windows of `context_tokens`, in bits per UTF-8 byte.

    The first token of each window is given, not predicted, so its bytes are not counted either.
    """
    nats = 0.0
    num_bytes = 0
    stream = [token for text in texts for token in tokenizer.encode(text).ids]
    windows = [stream[i : i + context_tokens] for i in range(0, len(stream), context_tokens)]
    windows = [window for window in windows if len(window) == context_tokens]
    with torch.no_grad():
        for start in range(0, len(windows), 8):
            batch = torch.tensor(windows[start : start + 8])
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
            nats += nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
            num_bytes += sum(len(tokenizer.decode(row[1:]).encode()) for row in batch.tolist())
    return nats / math.log(2) / num_bytes


def exact_match(model: nn.Module, tokenizer: Tokenizer, task: str, num_items: int, seed: int) -> float:
    """Share of held-out items whose whole answer greedy decoding produces.

    Teacher forcing gives the same verdict: decoding is right up to the first wrong token exactly when every
    token is the argmax given the true prefix.
    """
    stream = tasks.generate(task, held_out=True, seed=seed)
    correct = 0
    with torch.no_grad():
        for _ in range(num_items):
            item = next(stream)
            prompt = tokenizer.encode(item.prompt).ids
            answer = tokenizer.encode(item.answer + tasks.ANSWER_END).ids
            logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0]
            correct += logits[len(prompt) - 1 : -1].argmax(-1).tolist() == answer
    return correct / num_items
