# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A tiny model, tokenizer, dataset and trainer, built in memory: no test needs the network."""

import functools

import support.environment  # noqa: F401 (before the libraries that read it)
import torch
from accelerate.utils import imports
from datasets import Dataset
from support.copies import Template
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM


# Two things that cost more than a step of a tiny model. For each model that it unwraps, accelerate looks on the disk
# whether PEFT and DeepSpeed are there. For each seed, torch formats the stack once per kind of accelerator that is
# not there.
imports._is_package_available = functools.cache(imports._is_package_available)
for accelerator in (torch.cuda, torch.xpu, torch.mtia):
    if not accelerator.is_available():
        accelerator.manual_seed_all = lambda seed: None

EXACT = dict(rtol=0, atol=0)
FLOAT32 = dict(rtol=2e-5, atol=5e-6)  # two orders of the same float32 operations
FLOAT64 = dict(rtol=1e-9, atol=1e-10)  # against literals printed with ten digits

# Settings of all tiny training runs.
TRAINING = dict(
    logging_steps=1,
    save_strategy="no",
    report_to=[],
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
    disable_tqdm=True,
)

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
VOCABULARY = 24


def build_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", *(f"w{index}" for index in range(VOCABULARY - 2))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def build_model(seed: int = 0, **overrides) -> Qwen2ForCausalLM:
    """A model with these weights. The random state is left as drawing them leaves it."""
    template, random_state = _first_model(seed, torch.get_default_dtype(), torch.get_default_device(), **overrides)
    torch.manual_seed(seed)
    torch.set_rng_state(random_state)
    return template.copy()


@functools.cache
def _first_model(seed: int, dtype: torch.dtype, device: torch.device, **overrides) -> tuple[Template, torch.Tensor]:
    torch.manual_seed(seed)
    settings = dict(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,  # spread the logits, so that entropies and ratios differ between tokens
        pad_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(Qwen2Config(**{**settings, **overrides}))
    return Template(model), torch.get_rng_state()


def build_moe(**overrides) -> Qwen3MoeForCausalLM:
    torch.manual_seed(0)
    settings = dict(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=32,
        moe_intermediate_size=8,
        num_experts=3,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.5,
    )
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**settings, **overrides}))


@functools.cache
def build_dataset(rows: int = 16) -> Dataset:
    return Dataset.from_dict({"prompt": [f"w{index % 7} w{index % 5 + 7} w{index % 3 + 12}" for index in range(rows)]})


def count_reward(completion_ids, **kwargs) -> list[float]:
    """A reward with spread inside every group: the share of even tokens."""
    return [sum(token % 2 == 0 for token in ids) / max(len(ids), 1) for ids in completion_ids]


def build_trainer(
    trainer_class,
    config_class,
    output_dir,
    *,
    model=None,
    reward_funcs=count_reward,
    rollout_func=None,
    environment_factory=None,
    tools=None,
    train_dataset=None,
    eval_dataset=None,
    callbacks=None,
    processing_class=None,
    peft_config=None,
    **settings,
):
    defaults = dict(
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        learning_rate=0.05,
        max_steps=2,
        **TRAINING,
        seed=7,
    )
    return trainer_class(
        model=build_model() if model is None else model,
        reward_funcs=reward_funcs,
        rollout_func=rollout_func,
        environment_factory=environment_factory,
        tools=tools,
        args=config_class(str(output_dir), **{**defaults, **settings}),
        train_dataset=build_dataset() if train_dataset is None else train_dataset,
        eval_dataset=eval_dataset,
        processing_class=build_tokenizer() if processing_class is None else processing_class,
        callbacks=callbacks,
        peft_config=peft_config,
    )


def loss_and_gradients(trainer, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps  # set when training starts
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
