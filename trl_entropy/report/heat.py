# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Completions colored by token entropy, for the page and the terminal."""

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any
from unicodedata import category

from ..runs.files import finite
from .runs import Run
from .samples import token_logs


if TYPE_CHECKING:
    from rich.text import Text

HOTTEST = (217, 72, 1)  # black text on it has a contrast of 5 to 1
LOWEST_SCALE = 0.1  # nats; a finer scale would color noise in completions that are certain throughout
SHOWN_TOKENS = 800  # of a completion,
MOST_TOKENS = 18_000  # and of all; but
FEWEST_TOKENS = 50  # of each are always shown
UNPRINTABLE = "\ufffd"
COLD = 0.03  # below this share of the scale, tokens in the terminal keep the background color


@dataclass(frozen=True)
class HeatMap:
    """A completion. `tokens` are (text, entropy in nats) of the tokens shown; `None` outside the loss mask."""

    run: int
    step: int
    prompt: str
    advantage: float | None
    tokens: list[tuple[str, float | None]]
    left_out: int

    @property
    def mean(self) -> float:
        """Mean entropy of the tokens shown, in nats; 0 if none has one."""
        counted = [entropy for _, entropy in self.tokens if entropy is not None]
        return fmean(counted) if counted else 0.0


def heat_maps(runs: list[Run], count: int) -> list[HeatMap]:
    """Up to `count` completions from the first and the last token log of each run."""
    found = [
        (index, log["step"], record)
        for index, run in enumerate(runs)
        for log in token_logs(run)
        for record in log["completions"][:count]
    ]
    most = max(FEWEST_TOKENS, min(SHOWN_TOKENS, MOST_TOKENS // max(1, len(found))))
    return [heat_map(*parts, most) for parts in found]


def printable(text: str) -> str:
    """Text without control characters, which could move the cursor of a terminal."""
    return "".join(letter if letter in "\n\t" or category(letter) != "Cc" else UNPRINTABLE for letter in text)


def heat_map(run: int, step: int, record: dict[str, Any], most: int) -> HeatMap:
    """An entry of a token log as a heat map of its first tokens, at most `most`."""
    tokens = [*zip(map(printable, record["tokens"]), map(finite, record["entropies"]), strict=True)]
    left_out = max(0, len(tokens) - most)
    prompt = printable(record.get("prompt", ""))
    return HeatMap(run, step, prompt, finite(record.get("advantage")), tokens[:most], left_out)


def scale_of(maps: list[HeatMap]) -> float:
    """The entropy of the hottest color. All completions share it, so their colors can be compared."""
    return max([LOWEST_SCALE, *(entropy for shown in maps for _, entropy in shown.tokens if entropy is not None)])


def ticks(scale: float) -> list[float]:
    """Entropies for the color scale."""
    return [scale * share / 4 for share in range(5)]


def color_at(entropy: float, scale: float) -> str:
    """White at 0 nats, the hottest color from `scale` on."""
    share = min(max(entropy / scale, 0.0), 1.0)
    return "#" + "".join(f"{round(255 + share * (part - 255)):02x}" for part in HOTTEST)


def colored_text(shown: HeatMap, scale: float) -> "Text":
    """A completion in color for the terminal. Needs rich."""
    from rich.text import Text

    text = Text(f"{shown.prompt} | ", style="dim")
    for token, entropy in shown.tokens:
        if entropy is None:
            style = "dim"
        else:
            style = "not dim" if entropy < COLD * scale else f"not dim black on {color_at(entropy, scale)}"
        text.append(token, style=style)
    if shown.left_out:
        text.append(f" ... {shown.left_out} more tokens", style="dim")
    return text


def print_heat_maps(maps: list[HeatMap], labels: list[str]) -> None:
    """Prints completions in color, with the color scale. Needs rich."""
    from rich.console import Console
    from rich.text import Text

    console, scale = Console(highlight=False), scale_of(maps)
    for shown in maps:
        console.rule(Text(f"{labels[shown.run]}, step {shown.step}, mean entropy {shown.mean:.3f} nats"), align="left")
        console.print(colored_text(shown, scale))
    key = Text("nats: ")
    for value in ticks(scale):
        key.append(f" {value:.2f} ", style=f"black on {color_at(value, scale)}")
    console.print(key)
