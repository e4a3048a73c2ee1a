# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A tiny language model for Countdown: word-level tokenizer, and a supervised warm start that is cached."""

import hashlib
import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    get_cosine_schedule_with_warmup,
)

from . import chat
from . import task as countdown
from .task import (
    ATTEMPT,
    CHAIN,
    END_OF_THOUGHT,
    FAILED,
    OPERATIONS,
    TASKS,
    TOTALS,
    Prompt,
    Task,
    chain,
    countdown_dataset,
    misses,
    prompts,
    solutions,
)


RECORD = "warm_start.json"
PAD, END = "<pad>", "<eos>"
WORDS = [PAD, END, "n", "t", ":", "<think>", END_OF_THOUGHT, "=", *OPERATIONS, *map(str, TOTALS)]


@dataclass(frozen=True)
class WarmStart:
    """Settings of a warm-started model. With the defaults it trains for about a minute on two cores.

    Attributes:
        hidden_size, layers, heads: size of the model.
        steps, batch_size, learning_rate: of supervised training (AdamW, linear warm-up, cosine to zero).
        seed: of the initial weights and of the data.
        task: the task to learn.
    """

    hidden_size: int = 96
    layers: int = 2
    heads: int = 4
    steps: int = 600
    batch_size: int = 128
    learning_rate: float = 6e-3
    seed: int = 0
    task: Task = CHAIN


# Settings of the warm start for each task.
WARM_STARTS = {
    "chain": WarmStart(),
    "attempts": WarmStart(steps=700, task=TASKS["attempts"]),
    "tools": WarmStart(task=TASKS["tools"]),
}


def words_of(task: Task) -> list[str]:
    """The vocabulary of a task. The words around an attempt and those of a conversation are only in their tasks."""
    if task.tools:
        return [*WORDS, *chat.WORDS]
    return [*WORDS, ATTEMPT, FAILED] if task.attempts else WORDS


def build_tokenizer(task: Task = CHAIN) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word. It pads on the left, as generation requires.

    In a task with tools it has a chat template, and a response template by which calls are parsed.
    """
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words_of(task))}, unk_token=PAD))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PAD, eos_token=END, padding_side="left")
    if task.tools:
        tokenizer.chat_template, tokenizer.response_template = chat.CHAT_TEMPLATE, chat.RESPONSE_TEMPLATE
    return tokenizer


def build_model(settings: WarmStart) -> Qwen3ForCausalLM:
    """A Qwen3 of the size in `settings`, with random weights in float32."""
    torch.manual_seed(settings.seed)
    config = Qwen3Config(
        vocab_size=len(words_of(settings.task)),
        hidden_size=settings.hidden_size,
        intermediate_size=3 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        head_dim=settings.hidden_size // settings.heads,
        max_position_embeddings=128 if settings.task.tools else 64,
        tie_word_embeddings=True,
        pad_token_id=WORDS.index(PAD),
        eos_token_id=WORDS.index(END),
        bos_token_id=None,
        initializer_range=0.08,  # with the usual 0.02, for wide models, this one learns half as fast
    )
    return Qwen3ForCausalLM(config)


def supervised_batch(
    rows: Sequence[Prompt], tokenizer: PreTrainedTokenizerFast, draw: random.Random, task: Task = CHAIN
) -> Tensor:
    """Token ids (B, L): each prompt with a random right answer, padded on the right.

    In a task with attempts, their number is uniform, and so is each attempt. With tools, a row is a conversation.
    """
    if task.tools:
        talks = [chat.conversation(row.text, draw.choice(solutions(*row))) for row in rows]
        texts = tokenizer.apply_chat_template(talks, tokenize=False)
        return tokenizer(texts, return_tensors="pt", padding=True, padding_side="right").input_ids
    texts = []
    for row in rows:
        failed = draw.choices(misses(*row), k=draw.randint(0, task.attempts)) if task.attempts else ()
        texts.append(f"{row.text} {chain(draw.choice(solutions(*row)), failed)} {END}")
    return tokenizer(texts, return_tensors="pt", padding=True, padding_side="right").input_ids


def targets_of(tokens: Tensor, tokenizer: PreTrainedTokenizerFast, prompt: int, task: Task = CHAIN) -> Tensor:
    """(B, L) the tokens that the policy is to write, and padding elsewhere.

    Args:
        tokens: (B, L) from [`supervised_batch`].
        tokenizer: the tokenizer.
        prompt: tokens of a prompt without a conversation around it.
        task: the task. With tools the policy writes what is between `<assistant>` and the end of a message.
    """
    pad = tokenizer.pad_token_id
    if not task.tools:
        return torch.cat([torch.full_like(tokens[:, :prompt], pad), tokens[:, prompt:]], 1)
    opens = tokens == tokenizer.convert_tokens_to_ids(chat.ASSISTANT)
    ends = tokens == tokenizer.eos_token_id
    # Every message has one end. Those of the user and of tools come before each of the policy's.
    own = ends.cumsum(1) - ends.long() == 2 * opens.cumsum(1) - 1
    return tokens.masked_fill(~own | opens, pad)


def progress_bar(label: str, total: int) -> tqdm:
    """A bar of optimizer steps. If the output is not a terminal, it is drawn every 15 seconds only."""
    return tqdm(total=total, desc=f"{label:<10}", unit="step", mininterval=0.2 if sys.stderr.isatty() else 15)


def train_warm_start(settings: WarmStart, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Trains a model from scratch on right answers to the training prompts."""
    model, draw, rows = build_model(settings), random.Random(settings.seed), prompts(False, settings.task)
    steps = settings.steps
    # For a few hundred steps, averages shorter than the usual 0.9 and 0.999 work better.
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.85, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    prompt_length = len(rows[0].text.split())
    model.train()
    bar = progress_bar("warm start", steps)
    for _ in range(steps):
        tokens = supervised_batch(draw.choices(rows, k=settings.batch_size), tokenizer, draw, settings.task)
        targets = targets_of(tokens, tokenizer, prompt_length, settings.task)
        logits = model(tokens).logits[:, :-1]
        # No attention mask: words do not attend to the padding after them.
        loss = cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=tokenizer.pad_token_id)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        bar.update()
    bar.close()
    return model.eval()


def fingerprint(settings: WarmStart) -> dict:
    """Identifies a cached warm start: its settings, and a hash of the code of task and model."""
    source = b"".join(Path(module).read_bytes() for module in (countdown.__file__, chat.__file__, __file__))
    return asdict(settings) | {"code": hashlib.sha256(source).hexdigest()}


def warm_start(cache: str | Path, settings: WarmStart | None = None, rebuild: bool = False) -> Path:
    """The folder of a warm-started model. Trains it if the cache has none with these settings.

    The cache holds `model` (from `save_pretrained`, with the tokenizer), `data` (`train.parquet`, and the held-out
    prompts in `test.parquet`), and `warm_start.json`, which identifies them and is written last. All are built in a
    temporary folder and moved file by file, so that several processes can ask at once. The first to finish wins.

    Args:
        cache: folder of the cache.
        settings: of the warm start.
        rebuild: whether to train even if the cache has it.
    """
    settings = settings or WarmStart()
    cache, expected = Path(cache), fingerprint(settings)
    record = cache / RECORD
    if not rebuild and holds(record, expected):
        return cache / "model"
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".building-", dir=cache) as folder:
        build_warm_start(Path(folder), settings)
        if rebuild or not holds(record, expected):
            record.unlink(missing_ok=True)
            for path in sorted(Path(folder).glob("*/*")):
                (cache / path.parent.name).mkdir(exist_ok=True)
                os.replace(path, cache / path.parent.name / path.name)
            part = Path(folder, RECORD)
            part.write_text(json.dumps(expected, indent=2))
            os.replace(part, record)
    return cache / "model"


def holds(record: Path, expected: dict) -> bool:
    """Whether a cache's record exists and matches."""
    try:
        return json.loads(record.read_text()) == expected
    except FileNotFoundError:
        return False


def build_warm_start(folder: Path, settings: WarmStart) -> None:
    """Trains the model, and writes `model` and `data` into `folder`."""
    tokenizer = build_tokenizer(settings.task)
    train_warm_start(settings, tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "data").mkdir()
    countdown_dataset(False, settings.task).to_parquet(folder / "data" / "train.parquet")
    countdown_dataset(True, settings.task).to_parquet(folder / "data" / "test.parquet")


def load_warm_start(folder: str | Path) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Model and tokenizer in the folder that [`warm_start`] returned."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
