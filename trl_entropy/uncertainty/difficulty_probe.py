# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The probe of DiffAdapt: tells from a hidden state at the end of a prompt how hard the question is."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .answers import prompt_ids_of
from .diffadapt import HARD, LABELS, STRATEGIES, Strategy
from .probe_training import HeldOut, split_labels, standardization, train


FEWEST = 20  # examples of each label from which a probe is fitted
WIDTH = 128
EPOCHS = 100
WEIGHTS, DESCRIPTION = "probe.safetensors", "probe.json"
BATCH = 8  # prompts per forward


def prompt_features(model: Any, tokenizer: Any, prompts: Sequence[Any], batch: int = BATCH) -> Tensor:
    """The last layer's hidden states, after the final norm, at the last tokens of prompts.

    Args:
        model: causal language model. It is put into evaluation mode.
        tokenizer: of the model.
        prompts: N texts or conversations.
        batch: prompts per forward.

    Returns:
        (N, d) in float32, on the CPU.
    """
    model.eval()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder, device = inner.get_decoder(), next(model.parameters()).device
    rows = [torch.tensor(prompt_ids_of(prompt, tokenizer)) for prompt in prompts]
    order, found = sorted(range(len(rows)), key=lambda n: len(rows[n])), dict[int, Tensor]()
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        ids = nn.utils.rnn.pad_sequence([rows[n] for n in places], batch_first=True).to(device)
        lengths = torch.tensor([len(rows[n]) for n in places], device=device)
        mask = torch.arange(ids.size(1), device=device) < lengths[:, None]
        with torch.no_grad():
            hidden = decoder(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(places), device=device), lengths - 1].float().cpu()
        found |= dict(zip(places, last, strict=True))
    return torch.stack([found[n] for n in range(len(rows))]) if rows else torch.zeros(0, 0)


@dataclass
class DifficultyProbe:
    """softmax(W2 relu(W1 h + b1) + b2) over labels, h the hidden state at the end of a prompt.

    Attributes:
        labels: the C labels that it tells apart.
        weights: `W1` (H, d), `b1` (H,), `W2` (C, H) and `b2` (C,) in float32.
        strategies: by label.
        held_out: its quality on examples that it was not fitted to; `None` if it was loaded.
    """

    labels: tuple[str, ...]
    weights: dict[str, Tensor]
    strategies: Mapping[str, Strategy] = field(default_factory=lambda: STRATEGIES)
    held_out: HeldOut | None = None

    @classmethod
    def fit(
        cls,
        features: Tensor,
        labels: Sequence[str],
        width: int = WIDTH,
        epochs: int = EPOCHS,
        share: float = 0.2,
        seed: int = 0,
    ) -> "DifficultyProbe":
        """Fits a probe: AdamW at 1e-3 in batches of 32, classes weighted by 1 / frequency.

        Args:
            features: (N, d) of [`prompt_features`]. They are standardized; the weights returned take them as they are.
            labels: (N,) of `easy`, `normal` and `hard`. Without any `hard` one, the probe tells two labels apart.
            width: of the hidden layer.
            epochs: passes over the examples.
            share: of the examples of each label that are held out.
            seed: of the split, the initial weights and the order of examples.

        Raises:
            `ValueError`: there are fewer than 20 examples of a label, or a feature is not finite.
        """
        for name, value in (("width", width), ("epochs", epochs)):
            if type(value) is not int or value < 1:
                raise ValueError(f"`{name}` must be a whole number >= 1, got {value!r}.")
        counts = Counter(labels)
        if unknown := counts.keys() - set(LABELS):
            raise ValueError(f"`labels` must be {', '.join(LABELS)}, got {sorted(unknown)[0]!r}.")
        kept = tuple(name for name in LABELS if counts[name] or name != HARD)
        if few := [name for name in kept if counts[name] < FEWEST]:
            raise ValueError(
                f"`labels` must have at least {FEWEST} examples of each label, got {counts[few[0]]} of {few[0]!r}."
            )
        features = features.detach().float().cpu()
        if len(features) != len(labels) or not features.isfinite().all():
            raise ValueError("`features` must be finite, and as many as `labels`.")
        target = torch.tensor([kept.index(name) for name in labels])
        chosen = split_labels(target, share, seed)
        mean, scale = standardization(features[chosen])
        net = train((features[chosen] - mean) / scale, target[chosen], len(kept), width, epochs, seed)
        first = net["W1"].double() / scale
        offset = net["b1"].double() - first @ mean.double()
        probe = cls(kept, net | {"W1": first.float(), "b1": offset.float()})
        probe.held_out = HeldOut.of(probe.probabilities(features[~chosen]), target[~chosen], kept)
        return probe

    def probabilities(self, features: Tensor) -> Tensor:
        """(N, d) features -> (N, C) probabilities of the labels.

        Raises:
            `ValueError`: the features have another width than those of the fit.
        """
        w = self.weights
        if features.size(-1) != w["W1"].size(1):
            raise ValueError(
                f"The model's hidden states must have width {w['W1'].size(1)}, as when the probe was fitted, got "
                f"{features.size(-1)}."
            )
        hidden = torch.relu(features.float() @ w["W1"].T + w["b1"])
        return (hidden @ w["W2"].T + w["b2"]).softmax(-1)

    def classify(self, features: Tensor) -> list[str]:
        """(N, d) features -> the likeliest label of each."""
        return [self.labels[n] for n in self.probabilities(features).argmax(-1).tolist()]

    def choose(self, model: Any, tokenizer: Any, prompts: Sequence[Any], batch: int = BATCH) -> list[Strategy]:
        """The strategies for N prompts, in their order. Takes the arguments of [`prompt_features`]."""
        if not prompts:
            return []
        return [self.strategies[name] for name in self.classify(prompt_features(model, tokenizer, prompts, batch))]

    def save(self, folder: str | Path) -> None:
        """Writes the weights, and labels and strategies as JSON. The strategies may be edited there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: values.contiguous() for name, values in self.weights.items()}, folder / WEIGHTS)
        strategies = {name: asdict(self.strategies[name]) for name in self.labels}
        described = {"labels": list(self.labels), "strategies": strategies}
        (folder / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "DifficultyProbe":
        """Reads what [`DifficultyProbe.save`] wrote.

        Raises:
            `ValueError`: the folder holds no probe.
        """
        folder = Path(folder)
        try:
            described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            labels = tuple(described["labels"])
            strategies = {name: Strategy(**described["strategies"][name]) for name in labels}
            weights = load_file(folder / WEIGHTS)
            shapes = [weights[name].dim() for name in ("W1", "b1", "W2", "b2")]
        except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"`probe` must be a folder with {WEIGHTS} and {DESCRIPTION}, got {str(folder)!r}: {error}."
            ) from error
        if shapes != [2, 1, 2, 1] or len(weights["b2"]) != len(labels):
            raise ValueError(f"`probe` must hold weights of {len(labels)} labels, got others in {str(folder)!r}.")
        return cls(labels, weights, strategies)
