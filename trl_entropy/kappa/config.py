# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The fields of KappaTune in a trainer's config."""

from dataclasses import dataclass, field, fields
from typing import Any

from accelerate.logging import get_logger

from ..paper import Paper
from ..settings import checked, one_of
from .cache import KappaCache
from .selection import Selection


logger = get_logger(__name__)

NO_CACHE = "none"


class KappaTune:
    """Trains only the weights of low condition number.

    What a model card says of `kappa_mode`: the prefix of its fields, and what to cite.
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
    Fields that train only the weights of low condition number. A mixin: it stands before TRL's config.

    kappa_mode (`str`, *optional*, defaults to `"none"`):
        `"freeze"` trains the selected weights and freezes all others; `"lora"` makes them the targets of the trainer's
        `peft_config`; `"none"` leaves the model as it is.
    kappa_top_p (`float`, *optional*):
        Share of the candidates' parameters to select, as many modules from the top of the ranking as fit. 0.2 where
        `kappa_num_modules` is not given either.
    kappa_num_modules (`int`, *optional*):
        Number of modules to select, in place of a share.
    kappa_include (`list[str]`, *optional*, defaults to `[]`):
        Regular expressions: candidates are the modules in whose names one of them is found. Without any, all linear
        layers and fused experts, but for the output head, routers, and towers for other modalities.
    kappa_exclude (`list[str]`, *optional*, defaults to `[]`):
        Regular expressions: modules in whose names one of them is found are no candidates.
    kappa_order (`str`, *optional*, defaults to `"ascending"`):
        `"ascending"` by condition number as in the paper, or, for ablations, `"descending"` or `"random"` (by `seed`).
    kappa_experts (`str`, *optional*, defaults to `"median"`):
        What stands for a stack of fused experts: the `"median"` or the `"mean"` of their condition numbers.
    kappa_cache (`str`, *optional*):
        Folder of cached results, by default below the cache of Hugging Face; `"none"`: no cache.
    kappa_track_steps (`int`, *optional*):
        Log the condition numbers of the trained weights every so many optimizer steps, whatever `logging_steps` is.

    Raises:
        `ValueError`: a field is out of range.
    """

    kappa_mode: str = field(
        default="none",
        metadata={
            "help": "`freeze` trains the weights of low condition number and freezes all others; `lora` makes them the "
            "targets of the LoRA config; `none` leaves the model as it is."
        },
    )
    kappa_top_p: float | None = field(
        default=None,
        metadata={
            "help": "Share of the candidates' parameters to select, as many modules from the top of the ranking as "
            "fit. 0.2 where `kappa_num_modules` is not given either."
        },
    )
    kappa_num_modules: int | None = field(
        default=None, metadata={"help": "Number of modules to select, in place of a share."}
    )
    kappa_include: list[str] = field(
        default_factory=list,
        metadata={"help": "Regular expressions: candidates are the modules in whose names one of them is found."},
    )
    kappa_exclude: list[str] = field(
        default_factory=list,
        metadata={"help": "Regular expressions: modules in whose names one of them is found are no candidates."},
    )
    kappa_order: str = field(
        default="ascending",
        metadata={
            "help": "`ascending` by condition number as in the paper, or, for ablations, `descending` or `random`."
        },
    )
    kappa_experts: str = field(
        default="median",
        metadata={
            "help": "What stands for a stack of fused experts: the `median` or `mean` of their condition numbers."
        },
    )
    kappa_cache: str | None = field(
        default=None,
        metadata={"help": "Folder of cached results, by default below the cache of Hugging Face; `none`: no cache."},
    )
    kappa_track_steps: int | None = field(
        default=None,
        metadata={
            "help": "Log the condition numbers of the trained weights every so many optimizer steps, whatever "
            "`logging_steps` is."
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
            for name in (one.name for one in fields(KappaConfig) if one.name != "kappa_mode"):
                if getattr(self, name) != getattr(KappaConfig, name, []):  # a list has no default on the class
                    logger.warning(
                        f"`{name}` is set to {getattr(self, name)!r}, but `kappa_mode` is 'none': it does nothing."
                    )


def kappa_selection(config: Any) -> Selection:
    """What the fields of a config select. Raises `ValueError`."""
    names = ("top_p", "num_modules", "include", "exclude", "order", "experts")
    return Selection(**{name: getattr(config, f"kappa_{name}") for name in names}, seed=config.seed, prefix="kappa_")


def kappa_cache(folder: str | None) -> KappaCache | None:
    """The cache that `kappa_cache` names."""
    return None if folder == NO_CACHE else KappaCache(folder)
