"""Train `demo:code-lm`: `python -m blockexport.models.demos.code_lm.train --out FOLDER`.

Rows of code and rows of packed task items are mixed. Code is trained on every token, task items on their answers
only, since a random question cannot be predicted. Matrices use Muon (https://kellerjordan.github.io/posts/muon/),
all other parameters AdamW. A killed run goes on from its last checkpoint.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from blockexport.models.demos.code_lm import corpus, tasks
from blockexport.models.demos.code_lm.evaluate import bits_per_byte, exact_match
from blockexport.models.demos.code_lm.tokenizer import END_OF_TEXT, VOCAB_SIZE, train_tokenizer
from blockexport.models.demos.training import Checkpoint, write_record


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that decides the weights, besides the Python version whose sources are read."""

    seed: int = 66
    num_steps: int = 3000
    context_tokens: int = 512
    code_rows: int = 6
    task_rows: int = 2
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    warmup_steps: int = 60
    task_loss_weight: float = 0.5
    # Addition needs the most items; once it is learned, half-way, look-up gets them.
    early_task_shares: tuple[float, ...] = (0.15, 0.3, 0.55)
    late_task_shares: tuple[float, ...] = (0.15, 0.65, 0.2)
    checkpoint_every: int = 250


def model_config(context_tokens: int) -> Qwen2Config:
    """Qwen2 with 16 blocks, hidden 128 and two key/value heads for four query heads."""
    return Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context_tokens,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )


IGNORED = -100


class BatchSource:
    """Draws (row, context) token and label batches; the position in its random stream is the step number."""

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer, texts: list[str]) -> None:
        self._config = config
        self._tokenizer = tokenizer
        end_of_text = tokenizer.token_to_id(END_OF_TEXT)
        stream = [t for text in texts for t in [*tokenizer.encode(text).ids, end_of_text]]
        self._stream = torch.tensor(stream)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and labels of one step, (rows, context); a label of -100 is not trained on."""
        config = self._config
        rng = random.Random(f"{config.seed}:{step}")
        rows = [self._code_row(rng) for _ in range(config.code_rows)]
        items = {task: tasks.generate(task, held_out=False, seed=rng.randrange(2**32)) for task in tasks.TASKS}
        shares = config.early_task_shares if step < config.num_steps // 2 else config.late_task_shares
        rows += [self._task_row(rng, items, shares) for _ in range(config.task_rows)]
        return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])

    def _code_row(self, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
        start = rng.randrange(len(self._stream) - self._config.context_tokens)
        row = self._stream[start : start + self._config.context_tokens]
        return row, row

    def _task_row(
        self, rng: random.Random, items: dict[str, Iterator[tasks.TaskItem]], shares: tuple[float, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tokens: list[int] = []
        labels: list[int] = []
        while len(tokens) < self._config.context_tokens:
            task = rng.choices(tasks.TASKS, shares)[0]
            item = next(items[task])
            prompt = self._tokenizer.encode(item.prompt).ids
            answer = self._tokenizer.encode(item.answer + tasks.ANSWER_END).ids
            tokens += prompt + answer
            labels += [IGNORED] * len(prompt) + answer
        end = self._config.context_tokens
        return torch.tensor(tokens[:end]), torch.tensor(labels[:end])


def _optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=config.muon_lr, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=config.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _lr_factor(step: int, config: TrainConfig) -> float:
    return min(1.0, (step + 1) / config.warmup_steps) * (1.0 - step / config.num_steps)


def _loss(model: nn.Module, tokens: torch.Tensor, labels: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=tokens, use_cache=False).logits
    per_token = nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
    ).view(len(tokens), -1)
    num_answers = (labels[config.code_rows :, 1:] != IGNORED).sum()
    code_loss = per_token[: config.code_rows].mean()
    task_loss = per_token[config.code_rows :].sum() / num_answers
    return code_loss + config.task_loss_weight * task_loss


def evaluate(model: Any, tokenizer: Tokenizer, texts: list[str], num_items: int) -> dict[str, float]:
    """The metrics of the card: held-out bits per byte and exact match per task."""
    model.eval()
    metrics = {"bits_per_byte": bits_per_byte(model, texts, tokenizer, model.config.max_position_embeddings)}
    metrics |= {task: exact_match(model, tokenizer, task, num_items, seed=1) for task in tasks.TASKS}
    model.train()
    return metrics


def train(config: TrainConfig, out: Path) -> None:
    """Train from scratch (or from the last checkpoint in `out`) and write weights, tokenizer and metrics."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    training_texts, held_out_texts = corpus.read_split(held_out=False), corpus.read_split(held_out=True)
    tokenizer = train_tokenizer(training_texts)
    source = BatchSource(config, tokenizer, training_texts)
    model = Qwen2ForCausalLM(model_config(config.context_tokens)).train()
    optimizers = _optimizers(model, config)
    checkpoint = Checkpoint(out / "checkpoint.pt", model, optimizers)
    first_step, seconds = checkpoint.resume()
    base_lrs = [config.muon_lr, config.adam_lr]
    for step in range(first_step, config.num_steps):
        started = time.perf_counter()
        for optimizer, base_lr in zip(optimizers, base_lrs, strict=True):
            optimizer.param_groups[0]["lr"] = base_lr * _lr_factor(step, config)
        loss = _loss(model, *source.batch(step), config)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds += time.perf_counter() - started
        if (step + 1) % config.checkpoint_every == 0:
            metrics = evaluate(model, tokenizer, held_out_texts[:8], num_items=100)
            print(json.dumps({"step": step + 1, "loss": loss.item(), "seconds": round(seconds), **metrics}), flush=True)
            checkpoint.save(step + 1, seconds)
    _save_release(out, model, tokenizer)
    # The figures are those of the weights as shipped, rounded to half precision.
    released = Qwen2ForCausalLM.from_pretrained(out, dtype=torch.float32, local_files_only=True)
    metrics = evaluate(released, tokenizer, held_out_texts, num_items=1000)
    write_record(out, config, seconds, metrics)


def _save_release(out: Path, model: Qwen2ForCausalLM, tokenizer: Tokenizer) -> None:
    weights = {n: p.to(torch.float16).contiguous() for n, p in model.state_dict().items() if n != "lm_head.weight"}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = ["Qwen2ForCausalLM"]
    model.config.dtype = "float16"
    model.config.save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=TrainConfig().num_steps)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(TrainConfig(num_steps=args.steps), args.out)


if __name__ == "__main__":
    main()
