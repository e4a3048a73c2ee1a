# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""pass@k on Countdown, most of it computed and only a small rest sampled.

A right answer is one of about twelve per prompt, all known. Nearly always a policy works it out in its thought and
then gives it, so the probabilities of these completions, by teacher forcing, sum up to most of p, the probability of a
right completion. The rest is right answers after another thought, such as one with a wrong total. Stock and methods
learn them to different degrees, so they are estimated from samples:

    (1 - p)^k = (1 - p_in)^k · (1 - r)^k

with p_in the computed part, and r the probability that a completion is right, given that it is none of those. If m
samples are none of those, and o of them are right, C(m - o, k) / C(m, k) is an unbiased estimate of (1 - r)^k. The
noise is that of a small part. The same holds for each right answer, which gives the number of distinct ones.
"""

from collections import Counter

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_entropy.countdown.chat import ASSISTANT, TOOL, conversation
from trl_entropy.countdown.evaluation import converse, sample
from trl_entropy.countdown.model import END
from trl_entropy.countdown.task import CHAIN, TASKS, Completion, Prompt, Task, chain, prompts, read_answer, solutions
from trl_entropy.estimates import pass_at_k


PASSES = (1, 4, 8, 16)
DRAWN = 16  # completions to which `distinct` and `coverage` refer
SAMPLES = 32  # per prompt, for the rest and the entropy


def no_success(inside: Tensor, others: Tensor, right: Tensor, k: int) -> Tensor:
    """Estimate of the probability that k completions have no success.

    Args:
        inside: (N,) computed probabilities p_in.
        others: (N,) samples that are none of the computed completions.
        right: (N,) how many of them are right.
        k: completions. Where `others` is smaller, the estimate is (1 - right / others)^k, which has a bias. With 32
            samples and k = 16, p_in is then about a half or more, and its factor below 1e-4.
    """
    rest = [
        1 - pass_at_k(m, o, k) if m >= k else (1 - o / m) ** k if m else 1.0
        for m, o in zip(others.tolist(), right.tolist(), strict=True)
    ]
    return (1 - inside) ** k * torch.tensor(rest, dtype=inside.dtype)


class CountdownScores:
    """Evaluates a policy on the held-out prompts.

    Args:
        tokenizer: of the policy.
        batch_size: computed completions per forward.
        samples: per prompt, for the rest and the entropy.
    """

    task: Task = CHAIN

    def __init__(self, tokenizer: PreTrainedTokenizerBase, batch_size: int = 512, samples: int | None = None):
        self.tokenizer, self.batch_size, self.samples = tokenizer, batch_size, samples or SAMPLES
        self.rows = prompts(True, self.task)
        self.pairs = [(index, answer) for index, row in enumerate(self.rows) for answer in solutions(*row)]
        texts = [self.worked_out(self.rows[index], answer) for index, answer in self.pairs]
        self.computed_texts = dict(zip(self.pairs, texts, strict=True))
        self.tokens = tokenizer(texts, return_tensors="pt").input_ids  # (A, L): all have the same length
        self.sampled_tokens = self.by_policy(self.tokens[0])  # (L,): at the same places in all
        self.owner = torch.tensor([index for index, _ in self.pairs])  # (A,)

    def worked_out(self, row: Prompt, answer: str) -> str:
        """A prompt with the completion that works out an answer and gives it."""
        return f"{row.text} {chain(answer)} {END}"

    def by_policy(self, tokens: Tensor) -> Tensor:
        """(L,) which tokens of a prompt with its completion the policy samples."""
        return torch.arange(len(tokens)) >= len(self.rows[0].text.split())

    def draw(self, rows: list[Prompt], temperature: float, model: PreTrainedModel) -> tuple[list, list[str], Tensor]:
        """One completion per prompt, its text as in `worked_out`, and the entropies of all sampled tokens."""
        completions, entropy = sample(model, self.tokenizer, [row.text for row in rows], temperature)
        texts = [f"{row.text} {text.strip()} {END}" for row, text in zip(rows, completions, strict=True)]
        return completions, texts, entropy

    def per_prompt(self, values: Tensor) -> Tensor:
        """(A,) values of right answers -> (P,) sums over each prompt's."""
        return torch.zeros(len(self.rows), dtype=values.dtype).index_add(0, self.owner, values)

    def computed(self, model: PreTrainedModel, temperatures: tuple[float, ...]) -> list[Tensor]:
        """(A,) probabilities that an answer is worked out and given, one tensor per temperature."""
        found: list[list[Tensor]] = [[] for _ in temperatures]
        for tokens in self.tokens.split(self.batch_size):
            logits = model(tokens).logits[:, :-1][:, self.sampled_tokens[1:]].float()
            for parts, temperature in zip(found, temperatures, strict=True):
                logps = (logits / temperature).log_softmax(-1)
                parts.append(logps.gather(-1, tokens[:, self.sampled_tokens, None]).sum((1, 2)))
        return [torch.cat(parts).double().exp() for parts in found]

    def sampled(self, model: PreTrainedModel, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Counts (A,) of samples that work out and give an answer, (A,) of others that give it, and mean entropy."""
        inside, outside = Counter(), Counter()
        entropies = []
        for _ in range(0, self.samples, 4):
            completions, texts, entropy = self.draw(self.rows * 4, temperature, model)
            entropies.append(entropy)
            for place, (completion, text) in enumerate(zip(completions, texts, strict=True)):
                index = place % len(self.rows)
                answer = read_answer(completion, *self.rows[index])
                if answer is not None:
                    (inside if text == self.computed_texts[index, answer] else outside)[index, answer] += 1
        counts = (torch.tensor([found[pair] for pair in self.pairs]) for found in (inside, outside))
        return *counts, torch.cat(entropies).mean()

    def scores(self, computed: Tensor, inside: Tensor, outside: Tensor) -> dict[str, float]:
        """Means over prompts, from the (A,) values of `computed` and `sampled`.

        `outside` is the share of completions that are right after another thought.
        """
        total, others, right = (
            self.per_prompt(computed),
            self.samples - self.per_prompt(inside),
            self.per_prompt(outside),
        )
        found = {f"pass@{k}": 1 - no_success(total, others, right, k).mean().item() for k in PASSES}
        distinct = self.per_prompt(1 - no_success(computed, self.samples - inside, outside, DRAWN))
        coverage = distinct / self.per_prompt(torch.ones_like(computed))
        found |= {"distinct": distinct.mean().item(), "coverage": coverage.mean().item()}
        return found | {"outside": right.double().mean().item() / self.samples}

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel, temperatures: tuple[float, ...] = (1.0,)) -> list[dict[str, float]]:
        """One row of scores per temperature. The global random state is restored."""
        found = []
        for temperature, computed in zip(temperatures, self.computed(model, temperatures), strict=True):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                *counts, entropy = self.sampled(model, temperature)
            row = {"temperature": temperature, **self.scores(computed, *counts), "entropy": entropy.item()}
            found.append(row)
        return found


class AgentScores(CountdownScores):
    """The same for the task with a calculator: an answer is worked out by the calls of its operations, in order.

    What the calculator returns is known, so these conversations have exact probabilities too: the product of those of
    the tokens that the policy samples.
    """

    task = TASKS["tools"]

    def render(self, messages: list[dict]) -> str:
        """Messages as one text with single spaces."""
        return " ".join(self.tokenizer.apply_chat_template(messages, tokenize=False).split())

    def worked_out(self, row: Prompt, answer: str) -> str:
        return self.render(conversation(row.text, answer))

    def by_policy(self, tokens: Tensor) -> Tensor:
        # The policy samples what follows `<assistant>`, up to a result of the calculator.
        found, own = [], False
        for word in self.tokenizer.convert_ids_to_tokens(tokens.tolist()):
            own = own and word != TOOL
            found.append(own)
            own = own or word == ASSISTANT
        return torch.tensor(found)

    def draw(
        self, rows: list[Prompt], temperature: float, model: PreTrainedModel
    ) -> tuple[list[Completion], list[str], Tensor]:
        talks, entropies = converse(model, self.tokenizer, [row.text for row in rows], temperature, self.task)
        texts = [
            self.render([{"role": "user", "content": row.text}, *talk]) for row, talk in zip(rows, talks, strict=True)
        ]
        return talks, texts, torch.cat(entropies)
