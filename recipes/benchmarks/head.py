# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of the fused LM head, against TRL's own and against full logits.

    python recipes/benchmarks/head.py                      # a CPU, within a minute
    python recipes/benchmarks/head.py --clock cpu          # CPU time, on a machine that other processes share
    python recipes/benchmarks/head.py --preset gpu         # 8192 tokens, 151,936 words, bf16, hidden 1536 and 3584

All variants run in every round, so that a slow phase of the machine affects all of them. The table shows medians over
the rounds, and their ratios to TRL's head. Only the nucleus entropy depends on the data: most tokens are near-certain,
as in training with verifiable rewards, and a ratio `--open-share` of them has several likely continuations. The more
probability these leave to the bulk of the vocabulary (`--bulk`), the more work the nucleus takes.
"""

import argparse
import math
import statistics
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trl.kernels import ChunkedLogProbFunction

from trl_entropy.head.function import token_statistics
from trl_entropy.head.spec import HeadSpec


CHOICES = 8
LIVE_SHARES = (1.0, 0.5, 0.2, 0.1)
STATISTICS = {
    "second moments": HeadSpec(second_moments=True),
    "second temperature": HeadSpec(second_temperature=1.2),
    "nucleus entropy": HeadSpec(top_p=0.8),
    "top 3": HeadSpec(top_k=3),
    "top 8": HeadSpec(top_k=8),
}


@dataclass
class Variant:
    """A head to measure. `forward` returns per-token tensors, whose weighted sum is differentiated."""

    name: str
    forward: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
    live: float = 1.0
    backward: bool = True


class PeakMemory(TorchDispatchMode):
    """Peak memory of all tensors in bytes, on a device that does not count it itself."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self._seen = weakref.WeakSet()  # storages

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._seen:
                storage = tensor.untyped_storage()
                self._seen.add(storage)
                self.alive += storage.nbytes()
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return out

    def _freed(self, size: int) -> None:
        self.alive -= size


def trl_head(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    return ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, ("log_probs", "entropy"))


def full_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    log_p = (hidden @ weight.t()).float().log_softmax(-1)
    return log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


def our_head(spec: HeadSpec) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    return lambda hidden, weight, targets: token_statistics(hidden, weight, None, targets, spec)


def with_likeliest(count: int) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """Our head, with a gradient through the log-probabilities of the `count` likeliest tokens too."""

    def forward(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        out = token_statistics(hidden, weight, None, targets, HeadSpec(top_k=count))
        return (out.log_probs + out.top_log_probs.mean(-1),)

    return forward


def variants() -> list[Variant]:
    heads = [Variant("TRL's head", trl_head)]
    heads += [Variant(f"ours, {share:.0%} live", our_head(HeadSpec()), live=share) for share in LIVE_SHARES]
    heads += [Variant(f"ours, gradient through top {count} too", with_likeliest(count)) for count in (3, 8)]
    heads += [Variant(f"ours + {name}", our_head(spec), backward=False) for name, spec in STATISTICS.items()]
    return [*heads, Variant("full logits", full_logits)]


def example(args: argparse.Namespace, width: int) -> tuple[Tensor, ...]:
    """Hidden states (N, H), weight (V, H), labels (N,), and an order of the rows (N,).

    Logits have standard deviation 2 over the vocabulary. For most tokens one word is raised to probability 0.99. For
    the open tokens `CHOICES` words of geometrically falling probability are raised, which leave `--bulk` to all
    others.
    """
    dtype, options = getattr(torch, args.dtype), {"device": args.device, "generator": torch.Generator(args.device)}
    options["generator"].manual_seed(0)
    weight = torch.randn(args.vocab, width, **options) / width**0.5
    words = torch.randint(args.vocab, (args.tokens, CHOICES), **options)
    is_open = torch.rand(args.tokens, 1, **options) < args.open_share
    choice = 0.6 ** torch.arange(CHOICES, device=args.device)
    share = torch.where(is_open, choice / choice.sum() * (1 - args.bulk), 0.99 * (choice == 1))
    bulk = torch.where(is_open, args.bulk, 0.01)
    log_bulk = math.log(args.vocab) + 2  # log Σ exp of normal logits of spread 2
    hidden = 2 * torch.randn(args.tokens, width, **options)
    logits = (weight[words] @ hidden.unsqueeze(-1)).squeeze(-1)
    raised = torch.where(share > 0, log_bulk + torch.log(share / bulk) - logits, 0.0)
    directions = weight[words] / weight[words].square().sum(-1, keepdim=True)
    hidden = hidden + (raised.unsqueeze(-1) * directions).sum(1)
    order = torch.randperm(args.tokens, **options)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), words[:, 0], order


def run(variant: Variant, data: tuple[Tensor, ...], grads: Tensor, clock: str = "wall") -> tuple[float, float]:
    """Seconds of one forward, and of one backward of the log-probabilities (0 if not measured)."""
    hidden, weight, targets, order = data
    hidden.grad = weight.grad = None
    live = torch.zeros_like(grads)
    chosen = order[: round(variant.live * len(order))]
    live[chosen] = grads[chosen]
    started = now(hidden, clock)
    log_probs = variant.forward(hidden, weight, targets)[0]
    middle = now(hidden, clock)
    if variant.backward:
        log_probs.backward(live.to(log_probs.dtype))
    ended = now(hidden, clock)
    return middle - started, ended - middle if variant.backward else 0.0


def now(tensor: Tensor, clock: str) -> float:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() if clock == "wall" else time.process_time()


def peak_bytes(variant: Variant, data: tuple[Tensor, ...], grads: Tensor) -> int:
    """Peak memory of forward and backward, without the inputs."""
    data[0].grad = data[1].grad = None
    if data[0].device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(variant, data, grads)
        return torch.cuda.max_memory_allocated() - before
    with PeakMemory() as memory:
        run(variant, data, grads)
    return memory.peak


def measure(args: argparse.Namespace, width: int) -> list[str]:
    data = example(args, width)
    grads = torch.randn(args.tokens, device=args.device)
    heads = variants()
    peaks = {head.name: peak_bytes(head, data, grads) for head in heads}  # this is also the warm-up
    times = {head.name: [] for head in heads}
    for _ in range(args.rounds):
        for head in heads:
            times[head.name].append(run(head, data, grads, args.clock))
    return table(heads, times, peaks)


def table(heads: list[Variant], times: dict[str, list[tuple[float, float]]], peaks: dict[str, int]) -> list[str]:
    lines = [
        "| head | forward ms | ratio | backward ms | ratio | peak MiB | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    forward, backward = ({name: statistics.median(t[i] for t in ts) for name, ts in times.items()} for i in (0, 1))
    stock = heads[0].name
    for head in heads:
        cells = [head.name, f"{forward[head.name] * 1e3:.1f}", f"{forward[head.name] / forward[stock]:.2f}"]
        if head.backward:
            cells += [f"{backward[head.name] * 1e3:.1f}", f"{backward[head.name] / backward[stock]:.2f}"]
            cells += [f"{peaks[head.name] / 2**20:.0f}", f"{peaks[head.name] / peaks[stock]:.2f}"]
        else:
            cells += ["", "", f"{peaks[head.name] / 2**20:.0f}", "forward"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--tokens", type=int, help="N")
    parser.add_argument("--hidden", type=int, nargs="+", help="H, one table each")
    parser.add_argument("--vocab", type=int, help="V")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device")
    parser.add_argument("--rounds", type=int)
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: time of this process, all threads"
    )
    parser.add_argument("--open-share", type=float, default=0.2)
    parser.add_argument("--bulk", type=float, default=0.02)
    presets = {
        "cpu": dict(tokens=512, hidden=[256], vocab=32768, dtype="float32", device="cpu", rounds=5),
        "gpu": dict(tokens=8192, hidden=[1536, 3584], vocab=151936, dtype="bfloat16", device="cuda", rounds=9),
    }
    args = parser.parse_args()
    for name, value in presets[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.clock == "cpu" and args.device != "cpu":
        parser.error(f"`--clock cpu` must come with `--device cpu`, got {args.device!r}")
    return args


def main() -> None:
    args = arguments()
    for width in args.hidden:
        started = time.perf_counter()
        lines = measure(args, width)
        print(
            f"\n{args.tokens} tokens, hidden {width}, vocabulary {args.vocab}, {args.dtype}, {args.device}, "
            f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {args.rounds} rounds, "
            f"{args.clock} time, "
            f"{args.open_share:.0%} open tokens with {args.bulk:.0%} bulk ({time.perf_counter() - started:.0f} s)\n"
        )
        print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
