# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Memory that a distillation loss on full logits keeps for its backward, with TIP and with stock TRL.

    python recipes/benchmarks/saved_tensors.py

Counts the bytes of the tensors that autograd saves in one `compute_loss` of each of TRL's experimental trainers, on
random tokens: first in the divergence only, then with the model. Both exclude the logits of the two models, which the
trainers keep for every token until the loss is computed. The third number includes them: peak memory of all tensors
during `compute_loss` and its backward, without models and batch.
"""

import argparse
import tempfile

import torch
from datasets import Dataset
from head import PeakMemory
from tokenizers import Tokenizer, models
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import trl_entropy


DIVERGENCE = {
    "GKD": "generalized_jsd_loss",
    "SDFT": "_compute_self_distillation_loss",
    "SDPO": "_compute_self_distillation_loss",
}


def build_model(options, seed):
    torch.manual_seed(seed)
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
            initializer_range=0.1,
        )
    )


def build_trainer(name, options, folder, ratio):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
    )
    kind = dict(beta=1.0) if name == "GKD" else dict(distillation_mode="full_logits", distillation_alpha=1.0)
    kind |= {} if name == "GKD" else dict(teacher_model_kind="live", max_completion_length=options.length)
    kind |= dict(num_generations=options.rows) if name != "GKD" else {}
    models_and_rewards = {
        "GKD": dict(teacher_model=build_model(options, 1)),
        "SDPO": dict(reward_funcs=lambda **_: []),
    }
    config = getattr(trl_entropy, f"Entropy{name}Config")(
        folder,
        per_device_train_batch_size=options.rows,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        **(dict(tip_rule="none") if ratio == 1 else dict(tip_ratio=ratio)),
        **kind,
    )
    trainer = getattr(trl_entropy, f"Entropy{name}Trainer")(
        model=build_model(options, 0),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["<eos>"] * options.rows}),
        processing_class=tokenizer,
        **models_and_rewards.get(name, {}),
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def random_batch(name, options):
    generator = torch.Generator().manual_seed(1)
    rows, length = options.rows, options.length
    prompt, ids = (torch.randint(2, options.vocabulary, (rows, n), generator=generator) for n in (8, length))
    both = torch.cat([prompt, ids], 1)
    if name == "GKD":
        labels = torch.cat([torch.full_like(prompt, -100), ids], 1)
        return {"input_ids": both, "attention_mask": torch.ones_like(both), "labels": labels}
    batch = {"prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt)}
    batch |= {"completion_ids": ids, "completion_mask": torch.ones_like(ids), "advantages": torch.zeros(rows)}
    return batch | {"teacher_input_ids": both.roll(1, 0), "teacher_attention_mask": torch.ones_like(both)}


def saved_bytes(trainer, name, batch) -> tuple[int, int]:
    """Bytes saved in the divergence, and in all of `compute_loss` without the parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in trainer.model.parameters()}
    divergence, everything = {}, {}

    def counting(storages):
        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                storages[storage.data_ptr()] = everything[storage.data_ptr()] = storage.nbytes()
            return tensor

        return saved_tensors_hooks(pack, lambda tensor: tensor)

    stock = getattr(trainer, DIVERGENCE[name])

    def counted(*arguments, **keywords):
        with counting(divergence):
            return stock(*arguments, **keywords)

    setattr(trainer, DIVERGENCE[name], counted)
    trainer.model.train()
    with counting(everything):
        loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()  # if it runs, no counted tensor was freed and its address reused
    return sum(divergence.values()), sum(everything.values())


def peak_bytes(trainer, batch) -> int:
    """Peak memory of loss and backward in bytes, including gradients."""
    trainer.model.train()
    trainer.model.zero_grad()
    with PeakMemory() as memory:
        trainer.compute_loss(trainer.model, batch).backward()
    return memory.peak


def measured(trainer, name, batch) -> tuple[int, int, int]:
    return *saved_bytes(trainer, name, batch), peak_bytes(trainer, batch)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(rows=4, length=128, hidden=192, layers=2, vocabulary=16384).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.2, 0.1])
    options = parser.parse_args()
    print(f"{'':14}{'divergence MiB':>16}{'ratio':>8}{'with model MiB':>16}{'ratio':>8}{'peak MiB':>16}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in DIVERGENCE:
            batch = random_batch(name, options)
            stock = measured(build_trainer(name, options, folder, 1.0), name, batch)
            for ratio in (1.0, *options.ratios):
                found = measured(build_trainer(name, options, folder, ratio), name, batch)
                cells = (f"{part / 2**20:16.1f}{part / whole:8.3f}" for part, whole in zip(found, stock, strict=True))
                print(f"{f'{name} {ratio:.0%}':14}" + "".join(cells))


if __name__ == "__main__":
    main()
