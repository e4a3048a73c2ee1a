# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Step time with each method against stock TRL: one run, interleaved rounds, medians.

    python recipes/benchmarks/overhead.py
    python recipes/benchmarks/overhead.py --vocabulary 32768 --quantile 0.2 --only "no method"

A step is loss, backward and optimizer on the same batch of random tokens, without generation. `--quantile` sets TRL's
`top_entropy_quantile` on both sides: tokens below it have no gradient, and the fused head skips their backward.
`--head stock` keeps TRL's head, so that only the methods' own cost remains.

With large vocabularies glibc returns memory at each step and faults it in again, which costs TRL's head most. To
compare the heads without this, set `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000` before the command.
"""

import argparse
import statistics
import tempfile
import time

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from trl_entropy import METHODS, EntropyGRPOConfig, EntropyGRPOTrainer


# Fields that a method requires. A second rollout would need generation, which is not timed here.
REQUIRED = {
    "aepo": {"aepo_target_entropy": 0.5, "aepo_mode": "reweight"},
    "spear": {"spear_tools_only": False, "spear_tool_reward": 0.0},  # without a replay: `replay.py` times those
}


def fields_of(name):
    """The fields of the config for one method, or none for `no method`."""
    return {} if name == "no method" else {"methods": [name], **REQUIRED.get(name, {})}


def build_model(options):
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=options.vocabulary,
            hidden_size=options.hidden,
            intermediate_size=3 * options.hidden,
            num_hidden_layers=options.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=options.hidden // 4,
            max_position_embeddings=2 * options.length,
            tie_word_embeddings=True,
        )
    )


def build_trainer(trainer_class, config_class, options, folder, model=None, **fields):
    """A trainer of `model`, or of a small one. `fields` are of its config."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    config = config_class(
        folder,
        per_device_train_batch_size=options.rows,
        num_generations=options.rows,
        max_completion_length=options.length,
        top_entropy_quantile=options.quantile,
        gradient_checkpointing=False,
        report_to=[],
        **{"steps_per_generation": 4, "bf16": False, "use_cpu": True, **fields},
    )
    trainer = trainer_class(
        model=model or build_model(options),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["<eos>"] * options.rows}),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.create_optimizer()
    return trainer


def random_batch(options):
    generator = torch.Generator().manual_seed(1)
    rows, length = options.rows, options.length
    mask = (torch.arange(length) < torch.randint(length // 2, length + 1, (rows, 1), generator=generator)).long()
    return {
        "prompt_ids": torch.randint(2, options.vocabulary, (rows, 8), generator=generator),
        "prompt_mask": torch.ones(rows, 8, dtype=torch.long),
        "completion_ids": torch.randint(2, options.vocabulary, (rows, length), generator=generator),
        "completion_mask": mask,
        "advantages": torch.randn(rows, generator=generator),
        "rewards": torch.randint(2, (rows,), generator=generator).float(),
        "num_items_in_batch": mask.sum() * 4,
    }


def with_old_policy(batch, trainer):
    """The batch with an old policy one small step away: ratios near 1, few tokens clipped."""
    ids, mask = (torch.cat([batch[f"prompt_{kind}"], batch[f"completion_{kind}"]], 1) for kind in ("ids", "mask"))
    length = batch["completion_ids"].size(1)
    with torch.no_grad():
        logps, entropy, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, length, compute_entropy=True
        )
    noise = torch.randn(logps.shape, generator=torch.Generator().manual_seed(2)).to(logps.device)
    old = logps + 0.05 * noise
    return {**batch, "old_per_token_logps": old, "old_second_logps": old + 0.02 * noise, "old_entropies": entropy}


def step_seconds(trainer, batch) -> float:
    start = time.perf_counter()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(rows=8, length=128, hidden=192, layers=2, vocabulary=8192, rounds=15).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--quantile", type=float, default=1.0)
    parser.add_argument("--head", choices=["fused", "stock"], default="fused")
    parser.add_argument("--only", nargs="+", help="rows of the table, in addition to stock (all)")
    options = parser.parse_args()
    batch = random_batch(options)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {"stock": build_trainer(GRPOTrainer, GRPOConfig, options, folder)}
        for name in options.only or ("no method", *METHODS):
            fields = {"fused_head": options.head == "fused", **fields_of(name)}
            try:
                trainers[name] = build_trainer(EntropyGRPOTrainer, EntropyGRPOConfig, options, folder, **fields)
            except ValueError as error:  # a method that acts on rollouts only may need tools, which are not here
                print(f"{name}: not measured. {error}")
        batch = with_old_policy(batch, trainers["stock"])
        seconds = {name: [] for name in trainers}
        for round_index in range(options.rounds + 2):
            for name, trainer in trainers.items():
                elapsed = step_seconds(trainer, batch)
                if round_index >= 2:  # the first two rounds warm up
                    seconds[name].append(elapsed)
    print(f"{'':20}{'median ms':>10}{'ratio to stock (median of rounds)':>36}")
    for name, values in seconds.items():
        ratios = [value / stock for value, stock in zip(values, seconds["stock"], strict=True)]
        print(f"{name:20}{1e3 * statistics.median(values):10.1f}{statistics.median(ratios):36.3f}")


if __name__ == "__main__":
    main()
