# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `trl-entropy methods` and `trl-entropy monitors` show, as plain data.

Methods import torch, which takes seconds. So their descriptions are also stored in `methods.json`, which the command
reads while the sources of the methods are those that it was written from. `make tables` writes it again.
"""

import json
from dataclasses import Field, asdict, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..kappa.config import KappaConfig, KappaTune
from ..methods import METHODS
from ..methods.tip import Tip
from ..monitors.config import MONITORS, MonitorFields
from ..report.known import defaults_of, known_from
from ..settings import default_of, fields_of
from ..signs import as_plain, signs_of
from .methods import STORED, digest


# What a method acts on, by the hook that it overrides, in the order in which training comes to them.
STAGES = {
    "prompts": "prompts, before generation",
    "branches": "which completions exist, while they are generated",
    "reward": "rewards",
    "group_advantages": "advantages, once per generation batch",
    "group_mask": "the tokens that the loss counts, once per generation batch",
    "token_advantages": "advantages, in every forward",
    "clip_bounds": "the ratios at which the loss clips",
    "loss": "the loss, by a term",
    "keeps": "which completions are remembered, to be trained on again",
    "auxiliary_loss": "the loss, by a term on other completions",
}
# Not listed in `methods`: where they act.
OTHERS: dict[Any, str] = {
    Tip: "which tokens distillation trains on; set by `tip_*` in `trl-entropy distillation`, not listed in `methods`",
    KappaTune: "which weights are trained; set by `kappa_mode` of either trainer, not listed in `methods`",
}


def listed() -> dict[str, Any]:
    """Every method by name, those of other packages too, then TIP and KappaTune."""
    return METHODS | {other.name: other for other in OTHERS}


def stages(method: Any) -> list[str]:
    """Where in training a method acts, in words."""
    if method in OTHERS:
        return [OTHERS[method]]
    return [words for hook, words in STAGES.items() if method.overrides(hook)]


def accepted(hint: Any) -> str:
    """The type of a field in words."""
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if hint is type(None):
        return "none"
    members = get_args(hint)
    if members and get_origin(hint) is not list:
        return " or ".join(map(accepted, members))
    return f"list of {accepted(members[0])}" if members else getattr(hint, "__name__", str(hint))


def driving(method: Any) -> str:
    """What `entropy_keep` drives of a method, or why it cannot."""
    return f"cannot drive it: {method.no_knob}" if method.knob is None else f"drives {method.knob.describe()}"


def facts_of(method: Any) -> dict[str, Any]:
    """What advice must know of a method."""
    names = ("acts_on_ratio", "token_ratio", "ratio_scope", "compares_completions", "assumes_unit_advantages", "off")
    facts = {name: getattr(method, name) for name in names}
    return facts | {
        "off": [*facts["off"]],
        "idle": as_plain(signs_of(method))["idle"],
        "sets_clip_bounds": method.overrides("clip_bounds"),
        "has_knob": method.knob is not None,
    }


def record(method: Any) -> dict[str, Any]:
    """The description of one method: summary, paper, where it acts, and its fields."""
    config = KappaConfig if method is KappaTune else method.config
    hints = get_type_hints(config)
    facts = {} if method in OTHERS else {"facts": facts_of(method)}
    source = getattr(method, "checked_against", None)  # methods of other packages need not say it
    return {
        "summary": method.summary,
        "paper": f"{method.paper.title}, {method.paper.url}",
        "acts on": "; ".join(stages(method)),
        **({} if source is None else {"checked against": source}),
        **({} if method in OTHERS else {"entropy_keep": driving(method)}),
        "fields": {field.name: described(field, hints) for field in fields(config)},
        **facts,
    }


def described(field: Field, hints: dict[str, Any]) -> dict[str, str]:
    """Type, default and help of a config field."""
    return {
        "default": f"{accepted(hints[field.name])} = {default_of(field)!r}",
        "help": field.metadata["help"],
    }


def records() -> dict[str, dict[str, Any]]:
    """The descriptions of all methods by name."""
    return {name: record(method) for name, method in listed().items()}


def monitor_records() -> dict[str, dict[str, Any]]:
    """The descriptions of all monitors by name."""
    found = {}
    for name, monitor in MONITORS.items():
        own = fields_of(name, MonitorFields)
        hints = get_type_hints(MonitorFields)
        found[name] = {
            "summary": monitor.summary,
            "paper": f"{monitor.paper.title}, {monitor.paper.url}",
            "cost": monitor.cost,
            "fields": {field.name: described(field, hints) for field in own},
        }
    return found


def contents() -> dict[str, Any]:
    """What `methods.json` holds: the descriptions, what reports must know, and a hash of the sources."""
    from ..trainers.distillation_config import EntropyDistillationConfig
    from ..trainers.grpo_config import EntropyGRPOConfig

    known = known_from(EntropyGRPOConfig)
    return {
        "digest": digest(),
        "methods": records(),
        "monitors": monitor_records(),
        "known": {
            "methods": list(known.methods),
            "bands": {name: asdict(band) for name, band in sorted(known.bands.items())},
            "defaults": known.defaults,
            "distillation": defaults_of(EntropyDistillationConfig),
            "signs": {name: as_plain(signs) for name, signs in known.signs.items()},
        },
    }


def store() -> None:
    """Writes the descriptions for the command to read."""
    STORED.write_text(json.dumps(contents(), indent=1) + "\n", encoding="utf-8")
