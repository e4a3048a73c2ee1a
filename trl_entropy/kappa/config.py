# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The fields of KappaTune in a trainer's config. Each is described once, in its `help`; all else reads it there.

This module must not import torch: `trl-entropy kappa` reads it, and should show a cached table at once.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from ..paper import Paper
from ..settings import checked, default_of, one_of
from .cache import KappaCache
from .selection import Selection


NO_CACHE = "none"
Documented = TypeVar("Documented")


class KappaTune:
    """Trains only the weights of low condition number.

    This is how model cards and `trl-entropy methods` know KappaTune: the prefix of its fields, and its paper.
    """

    name = "kappa"
    summary = "trains only the weights of low condition number"
    paper = Paper(
        arxiv="2506.16289",
        title="The Condition Number as a Scale-Invariant Proxy for Information Encoding in Neural Units",
        bibtex="""@article{ludwig2025condition,
    title   = {The Condition Number as a Scale-Invariant Proxy for Information Encoding in Neural Units},
    author  = {Oswaldo Ludwig},
    journal = {arXiv preprint arXiv:2506.16289},
    year    = {2025}
}""",
    )


@dataclass
class KappaConfig:
    r"""
    Fields that train only the weights of low condition number. A mixin: it comes before TRL's config.

    {knobs}

    Raises:
        `ValueError`: a field is out of range.
    """

    kappa_mode: str = field(
        default="none",
        metadata={
            "help": "`freeze` trains the selected weights and freezes all others before the optimizer is created; "
            "`lora` makes them the targets of your LoRA config (`use_peft: true`, or `peft_config` without targets); "
            "`none` leaves the model as it is."
        },
    )
    kappa_top_p: float | None = field(
        default=None,
        metadata={
            "help": "Share of the candidates' parameters to select: as many modules from the top of the ranking as "
            "fit. 0.2 if no number of modules is given either."
        },
    )
    kappa_num_modules: int | None = field(
        default=None, metadata={"help": "Number of modules to select, instead of a share of the parameters."}
    )
    kappa_include: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Regular expressions: only modules whose names match one are candidates. By default, candidates "
            "are all linear layers and fused experts except the output head, routers, towers for other modalities, "
            "and layers whose weight the model's code reads without calling them (such as `dt_proj` of Mamba)."
        },
    )
    kappa_exclude: list[str] = field(
        default_factory=list,
        metadata={"help": "Regular expressions: modules whose names match one are not candidates."},
    )
    kappa_order: str = field(
        default="ascending",
        metadata={
            "help": "Order of the ranking: `ascending` by condition number as in the paper, or, for ablations, "
            "`descending` or `random` (by the seed)."
        },
    )
    kappa_experts: str = field(
        default="median",
        metadata={
            "help": "Fused experts are selected together; they rank by the `median` or the `mean` of their condition "
            "numbers."
        },
    )
    kappa_cache: str | None = field(
        default=None,
        metadata={"help": "Folder of cached results; by default in the Hugging Face cache. `none`: no cache."},
    )
    kappa_track_steps: int | None = field(
        default=None,
        metadata={
            "help": "Log the condition numbers of the trained weights every this many optimizer steps, independent of "
            "`logging_steps`. Adapters must be LoRA, DoRA or LyCORIS."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        one_of(self, "kappa_mode", "none", "freeze", "lora")
        checked(
            self,
            "kappa_track_steps",
            lambda steps: steps is None or type(steps) is int and steps > 0,
            "an integer above 0 or unset",
        )
        checked(
            self, "kappa_cache", lambda folder: folder is None or isinstance(folder, str), "a folder, 'none', or unset"
        )
        kappa_selection(self)
        if self.kappa_mode == "none":
            self._warn_of_idle_fields()

    def _warn_of_idle_fields(self) -> None:
        from accelerate.logging import get_logger  # not at the top: it imports torch

        for one in fields(KappaConfig):
            value = getattr(self, one.name)
            if one.name != "kappa_mode" and value != default_of(one):
                get_logger(__name__).warning(
                    f"`{one.name}` is set to {value!r}, but `kappa_mode` is 'none': it does nothing."
                )

    @property
    def tunings(self) -> list[type[KappaTune]]:
        """What a model card cites besides the methods."""
        return [] if self.kappa_mode == "none" else [KappaTune]


KNOBS = {one.name.removeprefix("kappa_"): one for one in fields(KappaConfig)}
TYPES = {name: knob.type for name, knob in KNOBS.items()}  # now: a parser of arguments changes those of the fields
SELECTION_KNOBS = ("top_p", "num_modules", "include", "exclude", "order", "experts")


def knob_help(name: str) -> str:
    """The help of the field `kappa_<name>`."""
    return KNOBS[name].metadata["help"]


def documented(thing: Documented, names: Sequence[str] = tuple(KNOBS), prefix: str = "") -> Documented:
    """Replaces `{knobs}` in the docstring of a class or function by a description of each of `names`."""

    def entry(name: str) -> str:
        knob = KNOBS[name]
        kind: Any = TYPES[name]
        kind = kind.__name__ if kind in (str, int, float) else kind
        head = f"{prefix}{name} (`{kind}`, *optional*, defaults to `{default_of(knob)!r}`):"
        return "\n".join([head, *textwrap.wrap(knob_help(name), 110, initial_indent="    ", subsequent_indent="    ")])

    if thing.__doc__:  # `python -OO` removes it
        before, _, after = thing.__doc__.partition("{knobs}")
        indent = before.rpartition("\n")[2]
        entries = textwrap.indent("\n".join(map(entry, names)), indent).removeprefix(indent)
        thing.__doc__ = before + entries + after
    return thing


documented(KappaConfig, prefix="kappa_")


def kappa_selection(config: Any) -> Selection:
    """The selection that the fields of a config describe. Raises `ValueError`."""
    settings = {name: getattr(config, f"kappa_{name}") for name in SELECTION_KNOBS}
    return Selection(**settings, seed=config.seed, prefix="kappa_")


def kappa_cache(folder: str | None) -> KappaCache | None:
    """The cache that the field `kappa_cache` names; `None` for "none"."""
    return None if folder == NO_CACHE else KappaCache(folder)
