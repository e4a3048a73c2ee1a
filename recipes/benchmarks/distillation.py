# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Time of distillation on a ratio of the tokens against stock TRL: one run, interleaved rounds, medians.

    python recipes/benchmarks/distillation.py
    python recipes/benchmarks/distillation.py --preset gpu    # 0.6 B student, 1.7 B teacher, 151,936 words, bf16

Prints two tables. The first times the heads only: forward and backward of the divergence, from hidden states. The
second times a whole step on the same batch of random tokens: both backbones, the heads, backward and optimizer, but
not generation. With `--rule entropy` the teacher's head runs only on the kept tokens if that is less work.

With large vocabularies glibc returns memory at each step and faults it in again. To exclude this from both sides, set
`MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000` before the command.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import DistillationConfig, DistillationTrainer
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from trl_entropy import EntropyDistillationConfig, EntropyDistillationTrainer
from trl_entropy.collectives import SINGLE_PROCESS
from trl_entropy.methods.tip import Tip, TipConfig
from trl_entropy.trainers.distillation import SelectingKernel


PRESETS = {
    "cpu": dict(
        **dict(rows=8, length=64, hidden=256, teacher_hidden=512, layers=2, vocabulary=16384),
        **dict(rounds=9, device="cpu", dtype="float32"),
    ),
    "gpu": dict(
        **dict(rows=8, length=2048, hidden=1024, teacher_hidden=2048, layers=28, vocabulary=151936),
        **dict(rounds=15, device="cuda", dtype="bfloat16"),
    ),
}


def build_model(options: argparse.Namespace, width: int) -> Qwen3ForCausalLM:
    torch.manual_seed(width)
    config = Qwen3Config(
        vocab_size=options.vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=options.layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        head_dim=64,
        max_position_embeddings=2 * options.length,
        initializer_range=0.1,  # spread the logits, so that tokens differ
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).to(getattr(torch, options.dtype))


def build_trainer(trainer_class: type, config_class: type, options: argparse.Namespace, folder: str, **fields):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    config = config_class(
        folder,
        per_device_train_batch_size=options.rows,
        max_completion_length=options.length,
        beta=options.beta,
        bf16=False,
        gradient_checkpointing=options.device != "cpu",
        use_cpu=options.device == "cpu",
        report_to=[],
        **fields,
    )
    trainer = trainer_class(
        model=build_model(options, options.hidden),
        teacher_model=build_model(options, options.teacher_hidden),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["<eos>"] * options.rows}),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.create_optimizer()
    trainer.model.train()
    return trainer


def random_batch(options: argparse.Namespace) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows, length = options.rows, options.length
    mask = (torch.arange(length) < torch.randint(length // 2, length + 1, (rows, 1), generator=generator)).long()
    batch = {
        "prompt_ids": torch.randint(2, options.vocabulary, (rows, 8), generator=generator),
        "prompt_mask": torch.ones(rows, 8, dtype=torch.long),
        "completion_ids": torch.randint(2, options.vocabulary, (rows, length), generator=generator),
        "completion_mask": mask,
        "num_items_in_batch": mask.sum(),
    }
    return {name: tensor.to(options.device) for name, tensor in batch.items()}


def step(trainer, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Loss, backward, optimizer."""

    def run() -> None:
        trainer.compute_loss(trainer.model, batch).backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return run


def heads(options: argparse.Namespace, ratio: float | None) -> Callable[[], None]:
    """Forward and backward of the divergence on `rows * length` tokens. Without a ratio, TRL's kernel."""
    generator = torch.Generator(options.device).manual_seed(0)
    count, dtype = options.rows * options.length, getattr(torch, options.dtype)

    def normal(rows: int, width: int) -> torch.Tensor:
        return torch.randn(rows, width, generator=generator, device=options.device).to(dtype)

    hidden, teacher_hidden = normal(count, options.hidden), normal(count, options.teacher_hidden)
    weight, teacher_weight = (
        normal(options.vocabulary, width) / width**0.5 for width in (options.hidden, options.teacher_hidden)
    )
    hidden.requires_grad_()
    weight = weight.requires_grad_()
    mask = torch.ones(options.rows, options.length, dtype=torch.bool, device=options.device)

    def run() -> None:
        hidden.grad = weight.grad = None
        kernel = ChunkedDivergenceFunction
        if ratio is not None:
            tip = Tip(TipConfig(tip_rule=options.rule, tip_ratio=ratio))
            kernel = SelectingKernel(tip, mask, (0, 0, 0), SINGLE_PROCESS, False)
        loss, _ = kernel.apply(hidden, weight, None, teacher_hidden, teacher_weight, None, options.beta)
        loss.sum().backward()

    return run


def measure(options: argparse.Namespace, variants: dict[str, Callable[[], None]]) -> list[str]:
    seconds = {name: [] for name in variants}
    for round_index in range(options.rounds + 2):
        names = list(variants)
        random.Random(round_index).shuffle(names)  # so that no variant always comes first
        for name in names:
            run = variants[name]
            started = now(options.device)
            run()
            if round_index >= 2:  # the first two rounds warm up
                seconds[name].append(now(options.device) - started)
    lines = ["| | median ms | ratio to stock (median of rounds) |", "|---|---:|---:|"]
    for name, values in seconds.items():
        ratios = [value / stock for value, stock in zip(values, seconds["stock"], strict=True)]
        lines.append(f"| {name} | {1e3 * statistics.median(values):.1f} | {statistics.median(ratios):.3f} |")
    return lines


def now(device: str) -> float:
    """Time in seconds. On a CPU it is processor time, which other processes disturb least."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--rule", default="soft_or")
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.0, 0.5, 0.2, 0.1])
    parser.add_argument("--only", choices=("heads", "step"), help="one of the tables")
    for name, value in PRESETS["cpu"].items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value))
    args = parser.parse_args()
    for name, value in PRESETS[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def main() -> None:
    options = arguments()
    print(
        f"{options.rows} x {options.length} tokens, vocabulary {options.vocabulary}, student {options.layers} x "
        f"{options.hidden}, teacher {options.layers} x {options.teacher_hidden}, {options.dtype}, {options.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, rule {options.rule}, beta {options.beta}"
    )
    if options.only != "step":
        variants = {"stock": heads(options, None)}
        variants |= {f"{options.rule} {ratio:.0%}": heads(options, ratio) for ratio in options.ratios}
        print("\nHeads, forward and backward\n", *measure(options, variants), sep="\n")
    if options.only != "heads":
        batch = random_batch(options)
        with tempfile.TemporaryDirectory() as folder:
            classes = (EntropyDistillationTrainer, EntropyDistillationConfig)
            variants = {"stock": step(build_trainer(DistillationTrainer, DistillationConfig, options, folder), batch)}
            for ratio in options.ratios:
                trainer = build_trainer(*classes, options, folder, tip_rule=options.rule, tip_ratio=ratio)
                variants[f"{options.rule} {ratio:.0%}"] = step(trainer, batch)
            print("\nStep\n", *measure(options, variants), sep="\n")


if __name__ == "__main__":
    main()
