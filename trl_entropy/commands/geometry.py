# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy geometry`: how many directions a model's representations of texts use, layer by layer."""

import argparse
import json
import logging
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .geometry_views import plot, table
from .parser import CommandParser, positive, whole_number
from .rows import read_rows


if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


def layer_number(text: str) -> str | int:
    """Type of an argument that is the number of a layer, or `all`."""
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be `all` or numbers of layers from 0, got {text!r}")
    return text if text == "all" else int(text)


def build_parser() -> CommandParser:
    parser = CommandParser(
        prog="trl-entropy geometry",
        description="Measures a model's hidden states at the last token of texts: effective rank (RankMe), power law "
        "of the spectrum (alpha), diffusion spectral entropy (DSE), and with classes their mutual information (DSMI). "
        "docs/monitors.md explains the numbers.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder or id on the Hub of a language model")
    parser.add_argument("--data", required=True, metavar="FILE", help="JSON lines, parquet or CSV with the texts")
    parser.add_argument("--text", metavar="COLUMN", help="the texts (prompt, messages or text)")
    parser.add_argument("--label", metavar="COLUMN", help="classes of the texts, for DSMI")
    parser.add_argument(
        "--pair", metavar="COLUMN", help="other texts, one to each; DSMI with clusters of their hidden states"
    )
    parser.add_argument("--clusters", type=positive, default=10, help="clusters of the pairs' texts (%(default)s)")
    parser.add_argument(
        "--layers", nargs="+", type=layer_number, default=[], metavar="N", help="also these layers, from 0, or `all`"
    )
    parser.add_argument("--samples", type=positive, default=256, help="first rows to take (%(default)s)")
    parser.add_argument(
        "--max-length", type=positive, default=512, help="tokens; of a longer text, the last are kept (%(default)s)"
    )
    parser.add_argument("--ranks", nargs=2, type=positive, default=[11, 100], help="ranks of the power law's fit")
    parser.add_argument("--batch-size", type=positive, default=8, help="texts per forward (%(default)s)")
    parser.add_argument("--seed", type=whole_number, default=0, help="of DSMI's subsets and clusters (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--output", type=Path, metavar="DIR", help="writes geometry.json and geometry.png there")
    return parser


def main(argv: list[str]) -> int:
    """Prints the table or JSON, writes the files asked for, and returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(argv)
    with parser.reporting():
        record = measure(options)
        text = json.dumps(record, indent=1, allow_nan=False)
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
            (options.output / "geometry.json").write_text(text + "\n", encoding="utf-8")
            plot(options.output / "geometry.png", record)
        print(text if options.json else table(record))  # noqa: T201 (the result of a command)
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The numbers of each layer, as plain data. A number that is not defined is `None`."""
    rows = read_rows(options.data)[: options.samples]
    for name in ("text", "label", "pair"):
        column = getattr(options, name)
        if column is not None and column not in rows[0]:
            raise ValueError(f"`--{name}` must be a column of the data, got {column!r}: it has {', '.join(rows[0])}.")
    if options.ranks[0] >= options.ranks[1]:
        raise ValueError(f"`--ranks` must be a rank and a larger one, got {options.ranks[0]} and {options.ranks[1]}.")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = [ids_of(row, options.text, tokenizer, options.max_length) for row in rows]
    pairs = [ids_of(row, options.pair, tokenizer, options.max_length) if options.pair else [0] for row in rows]
    there = [place for place, (one, other) in enumerate(zip(texts, pairs, strict=True)) if one and other]
    if len(there) < 2:
        raise ValueError(f"`--data` must have at least two texts that are not empty, got {len(there)}.")
    if left_out := len(rows) - len(there):
        logger.warning(f"Rows with an empty text are left out: {left_out} of {len(rows)}.")
    model = load(options.model)
    config = SimpleNamespace(
        geometry_samples=len(there),
        geometry_ranks=options.ranks,
        geometry_layers=layers_of_model(model, options.layers),
        geometry_dse=True,
    )
    features = hidden_states(model, config, [texts[place] for place in there], options.batch_size)
    classes: dict[str, list[Any]] = {}
    if options.label:
        classes["dsmi"] = [class_of(rows[place], options.label) for place in there]
    if options.pair:
        from ..monitors.diffusion import clusters

        others = hidden_states(model, config, [pairs[place] for place in there], options.batch_size)["last"]
        classes["dsmi_pair"] = clusters(others, options.clusters, options.seed).tolist()
    sizes = {name: Counter(str(x) for x in found if x is not None) for name, found in classes.items()}
    return {
        "model": options.model,
        "samples": len(there),
        "classes": {name: dict(found.most_common()) for name, found in sizes.items()},
        "layers": {
            name.removeprefix("layer_"): numbers(features[name], config, classes, options.seed)
            for name in (*(f"layer_{layer}" for layer in config.geometry_layers), "last")
        },
    }


def load(name: str) -> Any:
    """A language model, on a GPU if there is one."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(name, dtype="auto").to(device)


def ids_of(row: dict[str, Any], column: str | None, tokenizer: Any, most: int) -> list[int]:
    """The last token ids of a row's text or conversation."""
    from ..monitors.probe import row_ids

    if column is not None:
        value = row[column] or ""
        row = {"text" if isinstance(value, str) else "messages": value}
    return row_ids(row, tokenizer)[-most:]


def class_of(row: dict[str, Any], label: str) -> Any:
    """The class of a row; `None` if it has none."""
    value = row[label]
    if value is not None and not isinstance(value, (str, bool, int, float)):
        raise ValueError(f"`--label` must be a column of text, numbers, or true and false, got {value!r}.")
    return None if isinstance(value, float) and math.isnan(value) else value


def layers_of_model(model: Any, asked: list[str | int]) -> list[int]:
    """The numbers of the layers asked for, in order. Raises `ValueError` if the model has fewer."""
    if not asked:
        return []
    from ..monitors.layers import layers_of

    count = len(layers_of(model))
    chosen = range(count) if "all" in asked else sorted({*map(int, asked)})
    if chosen[-1] >= count:
        raise ValueError(f"`--layers` must be below {count}, the model's number of layers, got {chosen[-1]}.")
    return [*chosen]


def hidden_states(model: Any, config: SimpleNamespace, texts: list[list[int]], size: int) -> "dict[str, Tensor]":
    """(n, d) hidden states at the last token of each text, by layer."""
    from ..monitors.geometry import Geometry
    from ..monitors.looking import look
    from ..monitors.probe import Probe

    monitor = Geometry(config)
    monitor.check_model(model)
    return {name: found.cpu() for name, found in look(model, monitor, Probe(texts), size=size).items()}


def numbers(features: "Tensor", config: SimpleNamespace, classes: dict[str, list[Any]], seed: int) -> dict[str, Any]:
    """What is known of the features of one layer."""
    import torch

    from ..monitors.diffusion import diffusion_information
    from ..monitors.geometry import geometry_numbers

    found: dict[str, Any] = geometry_numbers(features, config.geometry_ranks, dse=True)
    for name, values in classes.items():
        known = [place for place, value in enumerate(values) if value is not None]
        order = {value: number for number, value in enumerate(dict.fromkeys(values[place] for place in known))}
        labels = torch.tensor([order[values[place]] for place in known])
        found[name] = diffusion_information(features[known], labels, seed=seed)
    return {key: value if math.isfinite(value) else None for key, value in found.items()}
