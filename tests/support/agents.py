# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tiny agents in TRL's own tool loop: a calculator, an environment with state, or an asynchronous tool.

The weights are random, so a rule writes the words around a call and decides which turns call. All other words are
sampled from the model. `Script` is a stand-in for vLLM whose every turn the test writes.
"""

import copy
import math
from types import SimpleNamespace

import torch
from datasets import Dataset
from support.tiny import build_model, build_trainer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LogitsProcessor, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer
from trl_entropy.countdown.chat import calculator
from trl_entropy.countdown.model import build_tokenizer
from trl_entropy.countdown.task import TASKS


TOKENIZER = build_tokenizer(TASKS["tools"])
GROUP, ROWS = 4, 8
PROMPTS = ["n 2 4 6 9 t 17 :", "n 1 3 5 t 9 :"]  # of different lengths


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text).input_ids


OPEN, CLOSE, END = ids_of("<call> calculator expression"), ids_of("</call>")[0], TOKENIZER.eos_token_id
WORDS = ids_of("1 2 3 4 5 6 7 8 9 + - *")


class Agent(LogitsProcessor):
    """Turns `<call> calculator expression WORD ... </call> <eos>` or `WORD ... <eos>`, with up to four words."""

    calls, longest = 0.8, 4

    def __init__(self):
        self.start = None

    def __call__(self, input_ids, scores):
        if self.start is None:
            self.start = input_ids.size(1)
            self.calling = (torch.rand(len(input_ids)) < self.calls).tolist()
        allowed = torch.full_like(scores, -torch.inf)
        for row, written in enumerate(input_ids[:, self.start :].tolist()):
            allowed[row, self.words(written, self.calling[row])] = 0
        return scores + allowed

    def words(self, written: list[int], calling: bool) -> list[int]:
        if calling and len(written) < len(OPEN):
            return [OPEN[len(written)]]
        if CLOSE in written:
            return [END]
        own, close = len(written) - len(OPEN) * calling, CLOSE if calling else END
        return WORDS if own == 0 else [close] if own >= self.longest else [*WORDS, close]


def build_agent(seed: int = 0):
    """A model whose `generate` follows the rule of `Agent`."""
    model = build_model(seed, vocab_size=len(TOKENIZER), max_position_embeddings=256)
    generate = model.generate
    model.generate = lambda *args, **kwargs: generate(*args, **kwargs, logits_processor=[Agent()])
    return model


class Notebook:
    """An environment with state: what its tool was given, in order."""

    def reset(self, **row):
        self.lines = []

    def calculator(self, expression: str) -> str:
        """
        Notes an expression.

        Args:
            expression: The expression.

        Returns:
            How many were noted before.
        """
        self.lines.append(expression)
        return str(len(self.lines) - 1)


async def asynchronous(expression: str) -> str:
    """
    Computes.

    Args:
        expression: An expression.

    Returns:
        The result.
    """
    return calculator(expression)


asynchronous.__name__ = "calculator"


def final_reward(completions, **kwargs) -> list[float]:
    """The share of even words in the last message."""
    words = [(completion[-1]["content"] or "0").split() for completion in completions]
    return [sum(word in "2 4 6 8" for word in row) / len(row) for row in words]


def build_agent_trainer(output_dir, *, stock=False, tools=(calculator,), environment=None, methods=(), **settings):
    """A trainer of an agent, on one process: two prompts of four rows in a generation batch."""
    rows = [[{"role": "user", "content": PROMPTS[index % 2]}] for index in range(4)]
    classes = (GRPOTrainer, GRPOConfig) if stock else (EntropyGRPOTrainer, EntropyGRPOConfig)
    defaults = dict(
        model=build_agent() if "model" not in settings else settings.pop("model"),
        reward_funcs=final_reward,
        tools=None if environment is not None else list(tools),
        environment_factory=environment,
        train_dataset=Dataset.from_dict({"prompt": rows}),
        processing_class=copy.deepcopy(TOKENIZER),
        per_device_train_batch_size=ROWS,
        num_generations=GROUP,
        max_completion_length=60,
        shuffle_dataset=False,
    )
    extra = {} if stock else dict(methods=list(methods))
    return build_trainer(*classes, output_dir, **{**defaults, **extra, **settings})


def inputs(group: int) -> list[dict]:
    """The rows of one generation batch."""
    return [{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS for _ in range(group)]


def roll_out(trainer, seed: int = 0) -> dict:
    """What TRL's `_generate` returned for one generation batch, and the output of its rollouts."""
    found = {}

    def keep(prompts, generate=trainer._generate):
        names = ("prompt_ids", "ids", "masks", "messages", "values", "extra", "images", "tool_images")
        found.update(zip(names, copy.deepcopy(output := generate(prompts)), strict=True))
        return output

    trainer._generate = keep
    torch.manual_seed(seed)
    trainer.model.train()
    try:
        found["output"] = trainer._generate_and_score_completions(inputs(trainer.num_generations))
    finally:
        del trainer._generate
    found["metrics"] = {key: list(values) for key, values in trainer._metrics["train"].items()}
    return found


class Script:
    """Stands in for TRL's vLLM backend: `policy(context, number)` gives the text of each turn and a spread.

    Each token of a turn is one of `spread` equally likely words, so that its entropy is log(spread). The sampled word
    comes last among them, as vLLM sorts them by rank.
    """

    policy = None
    tokenizer = TOKENIZER

    def __init__(self, **settings):
        self.logprobs, self.synced, self.contexts, self.number = 0, 0, [], 0
        limits = SimpleNamespace(max_model_len=4096)
        self.llm = SimpleNamespace(llm_engine=SimpleNamespace(model_config=limits))

    def sync_weights(self):
        self.synced += 1

    def generate(self, prompts, images, num_generations, profiler):
        self.contexts.append([self.tokenizer.decode(prompt) for prompt in prompts])
        turns = []
        for context in self.contexts[-1]:
            turns.append(type(self).policy(context, self.number))
            self.number += 1
        ids = [self.tokenizer(text).input_ids for text, _ in turns]
        known = [[self.known(token, spread) for token in row] for row, (_, spread) in zip(ids, turns, strict=True)]
        logps = [
            [[-math.log(spread)] * len(step) for step in row] for row, (_, spread) in zip(known, turns, strict=True)
        ]
        return prompts, ids, logps, known

    def known(self, token: int, spread: int) -> list[int]:
        """The tokens whose log-probabilities are given: that of the sampled one at least."""
        others = [other for other in range(len(self.tokenizer)) if other != token]
        return [*others[: min(spread - 1, self.logprobs)], token]


def byte_tokenizer(chat_template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes, with the chat template of a model of the Qwen3 family."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=special[0], eos_token=special[2], padding_side="left"
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def unique_words(number: int) -> str:
    """Three words that no other turn has."""
    return f"{number // 961 % 31} {number // 31 % 31} {number % 31}"


def call(number: int) -> str:
    return f"<call> calculator expression {unique_words(number)} </call> <eos>"


def answer(number: int) -> str:
    return f"{unique_words(number)} <eos>"
