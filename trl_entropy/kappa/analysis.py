# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Analysis of a whole model over processes and threads, slowest weights first. Cached results are reused."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .cache import KappaCache, cache_key
from .layers import Layer
from .sources import Source


if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_WORKERS = 16  # each holds one weight in float64 and its Gram matrix


@dataclass(frozen=True)
class Processes:
    """The processes that share an analysis, and their collectives. The default is a single process."""

    rank: int = 0
    count: int = 1
    local_count: int = 1
    gather: Callable[[list], list] = lambda parts: parts
    broadcast: Callable[[Any], Any] = lambda value: value


def schedule(layers: Sequence[Layer], processes: int) -> list[list[Layer]]:
    """Weights by process: the most expensive first, each to the process with the least work. Same on every process."""
    shares: list[list[Layer]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for layer in sorted(layers, key=lambda layer: (-layer.cost, layer.parameter)):
        least = loads.index(min(loads))
        shares[least].append(layer)
        loads[least] += layer.cost
    return shares


def measured(layer: Layer, weight: "Tensor") -> tuple[Layer, np.ndarray]:
    """A weight, (m, n) or (E, m, n) -> `layer` with results, and singular values, (min(m, n),) or (E, min(m, n))."""
    from .spectra import condition_number, singular_values

    begin = time.perf_counter()
    found = [singular_values(matrix) for matrix in (weight if weight.dim() == 3 else [weight])]
    values = np.stack([spectrum for spectrum, _ in found])
    kappas, states = zip(*(condition_number(spectrum, layer.shape[-2:]) for spectrum in values), strict=True)
    row = replace(
        layer,
        kappas=list(kappas),
        states=list(states),
        sigma_max=values[:, 0].tolist(),
        sigma_min=values[:, -1].tolist(),
        method="svd" if any(method == "svd" for _, method in found) else "gram",
        seconds=time.perf_counter() - begin,
    )
    return row, values if weight.dim() == 3 else values[0]


def current_device() -> "torch.device":
    """The device of this process, with its index: in a new thread, plain `cuda` would mean the first GPU."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compute(
    source: Source, layers: Sequence[Layer], local_processes: int = 1, progress: bool = True
) -> list[tuple[Layer, np.ndarray]]:
    """Analyzes weights in the given order, one per core at a time, because a single matrix keeps few cores busy."""
    if not layers:
        return []
    import torch
    from threadpoolctl import threadpool_limits
    from tqdm.auto import tqdm

    device = current_device()
    cores = max(1, available_cores() // local_processes)
    workers = 1 if device.type == "cuda" else min(cores, MAX_WORKERS, len(layers))
    threads, before = max(1, cores // workers), torch.get_num_threads()

    def work(layer: Layer) -> tuple[Layer, np.ndarray]:
        with torch.no_grad():
            return measured(layer, source.read(layer).to(device))

    total = sum(layer.cost for layer in layers)
    form = "{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining}"
    bar = tqdm(total=total, desc="condition numbers", bar_format=form, disable=not progress)
    with threadpool_limits(threads), bar, ExitStack() as afterwards:
        afterwards.callback(torch.set_num_threads, before)
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            done = []
            for future in as_completed([pool.submit(work, layer) for layer in layers]):
                done.append(future.result())
                bar.update(done[-1][0].cost)
    return done


def analyze(
    source: Source,
    wanted: Callable[[Layer], bool],
    cache: KappaCache | None = None,
    processes: Processes | None = None,
    progress: bool = True,
) -> list[Layer]:
    """All weights of a model, with condition numbers for the wanted ones. Same list on every process.

    Args:
        source: where the weights come from.
        wanted: whether to analyze a weight.
        cache: where analyses are stored; `None` for nowhere.
        processes: the processes that share the work, each with the same source.
        progress: whether to show a progress bar.
    """
    processes = processes or Processes()
    main = processes.rank == 0
    key = cache_key(source.fingerprint()) if cache and main else ""
    layers, values = (cache.load(key) if cache and main else None) or (None, {})
    layers = processes.broadcast(layers) or source.layers()
    shares = schedule([layer for layer in layers if wanted(layer) and not layer.kappas], processes.count)
    done = processes.gather(compute(source, shares[processes.rank], processes.local_count, progress and main))
    rows = {layer.parameter: layer for layer, _ in done}
    layers = [rows.get(layer.parameter, layer) for layer in layers]
    if cache and main and done:
        cache.save(key, source.name, layers, values | {layer.parameter: array for layer, array in done})
    return layers
