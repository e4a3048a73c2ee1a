# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A tiny model, tokenizer, dataset and trainer, all built in memory: no test needs the network."""

import os
import tempfile


os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    TRACKIO_DIR=tempfile.mkdtemp(prefix="trackio-"),  # read when TRL is imported
    WANDB_MODE="offline",
)

import atexit
import shutil

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM


torch.set_num_threads(1)
atexit.register(shutil.rmtree, os.environ["TRACKIO_DIR"], ignore_errors=True)

EXACT = dict(rtol=0, atol=0)
FLOAT32 = dict(rtol=2e-5, atol=5e-6)  # two orders of the same float32 operations
FLOAT64 = dict(rtol=1e-9, atol=1e-10)  # against literals printed with ten digits

# What all tiny trainings of the tests share.
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
# Methods that can be listed together, in an order in which they can.
TOGETHER = [
    "prompt_augmentation",
    "pear",
    "canon",
    "empg",
    "clip_cov",
    "kl_cov",
    "steer",
    "clip_b",
    "clip_v",
    "siren",
    "aepo",
    "epo",
]
REQUIRED = {"aepo": dict(aepo_target_entropy=0.5)}  # fields without which a method cannot be built
# Settings with which methods act on batches of a few dozen tokens.
STRONG = dict(
    clip_cov_ratio=0.2,
    clip_cov_low=0.02,
    clip_cov_high=2.0,
    kl_cov_ratio=0.3,
    clip_b_mu=0.5,
    clip_v_mu=0.3,
    clip_v_max_frac=0.3,
    siren_coef=0.5,
    epo_coef=0.1,
    epo_low=0.8,
    epo_high=1.2,
    aepo_target_entropy=1.0,
)


# Each method by itself, and by default those that can be combined in one run: agentic AEPO, which has no state, excludes EMPG.
METHOD_SETS = [
    pytest.param(TOGETHER, id="together"),
    *(pytest.param([name], id=name, marks=pytest.mark.slow) for name in (*TOGETHER, "agentic_aepo")),
]


def strong(methods: list[str]) -> dict:
    """Those of the settings that belong to one of `methods`."""
    return {key: value for key, value in STRONG.items() if key.startswith(tuple(methods))}


def build_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", *(f"w{index}" for index in range(VOCABULARY - 2))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def build_model(seed: int = 0, **overrides) -> Qwen2ForCausalLM:
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
    return Qwen2ForCausalLM(Qwen2Config(**{**settings, **overrides}))


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
        args=config_class(str(output_dir), **{**defaults, **settings}),
        train_dataset=build_dataset() if train_dataset is None else train_dataset,
        eval_dataset=eval_dataset,
        processing_class=build_tokenizer() if processing_class is None else processing_class,
        callbacks=callbacks,
        peft_config=peft_config,
    )


def make_loss_batch(rows: int = 4, length: int = 6, seed: int = 3, **extra) -> dict[str, torch.Tensor]:
    """A batch as TRL's `_compute_loss` takes it: padding, mixed advantage signs, ratios beyond each clip bound."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([length - row % 3 for row in range(rows)])
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {
        "prompt_ids": torch.randint(2, VOCABULARY, (rows, 3), generator=generator),
        "prompt_mask": torch.ones(rows, 3, dtype=torch.long),
        "completion_ids": torch.randint(2, VOCABULARY, (rows, length), generator=generator) * mask,
        "completion_mask": mask,
        "advantages": torch.linspace(-1.3, 1.1, rows),
        "num_items_in_batch": mask.sum(),
        **extra,
    }


def loss_and_gradients(trainer, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps  # set when training starts
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def make_tokens(logps, old_logps, advantages, entropy=None, mask=None, epsilon=0.2, **extra):
    """A `TokenBatch` from nested lists, in float64; one row where a flat list is given."""
    from trl_entropy.tokens import TokenBatch

    def tensor(values):
        return torch.atleast_2d(torch.as_tensor(values, dtype=torch.float64))

    logps, old_logps = tensor(logps), tensor(old_logps)
    entropy = torch.ones_like(logps) if entropy is None else tensor(entropy)
    fields = dict(
        old_entropy=entropy,
        mask=torch.ones_like(logps, dtype=torch.bool)
        if mask is None
        else torch.atleast_2d(torch.as_tensor(mask)).bool(),
        ratio=(logps - old_logps).exp(),
        clip_low=1 - epsilon,
        clip_high=1 + epsilon,
    )
    return TokenBatch(
        logps=logps, old_logps=old_logps, entropy=entropy, advantages=tensor(advantages), **{**fields, **extra}
    )


def random_tokens(rows=4, length=7, seed=0, **extra):
    """A `TokenBatch` of random values with ragged rows."""
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(rows, length, generator=generator, dtype=torch.float64)

    logits = 2 * torch.randn(rows, length, 9, generator=generator, dtype=torch.float64)
    policy = logits.log_softmax(-1)
    logps = policy[..., 0]
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    return make_tokens(
        logps,
        logps + 0.2 * normal(),
        normal()[:, :1].expand(rows, length),
        entropy=-(policy.exp() * policy).sum(-1),
        mask=torch.arange(length) < lengths,
        **{
            "sum_sq_probs": policy.exp().square().sum(-1),
            "sum_sq_probs_log_probs": (policy.exp().square() * policy).sum(-1),
            "nucleus_entropy": normal().abs(),
            "old_second_logps": (logits / 1.2).log_softmax(-1)[..., 0],
            "rewards": torch.randint(2, (rows,), generator=generator).double(),
            **extra,
        },
    )


def config_of(**fields):
    """The method fields at their defaults, but for those given."""
    from trl_entropy.methods import MethodsConfig

    return MethodsConfig(**fields)


def make_rollouts(entropy, advantages=None, mask=None, **extra):
    """A generation batch from nested lists, in float64, all of whose tokens the policy wrote."""
    from trl_entropy.tokens import Rollouts

    entropy = torch.as_tensor(entropy, dtype=torch.float64)
    mask = torch.ones_like(entropy, dtype=torch.bool) if mask is None else torch.as_tensor(mask).bool()
    advantages = torch.zeros(len(entropy)) if advantages is None else torch.as_tensor(advantages)
    advantages = advantages.double().unsqueeze(1) if advantages.dim() == 1 else advantages.double()
    return Rollouts(
        advantages=advantages.expand(entropy.shape),
        mask=mask,
        **{"generated": mask, "entropy": entropy, "completion_ids": torch.full(entropy.shape, 2), **extra},
    )


def random_rollouts(rows=8, length=7, seed=0, group=4, **extra):
    """Ragged rows, one of them empty, tokens of tools, and rewards of 0 and 1 of which one is missing."""
    generator = torch.Generator().manual_seed(seed)
    entropy = 3 * torch.rand(rows, length, generator=generator, dtype=torch.float64)
    lengths = torch.randint(2, length + 1, (rows, 1), generator=generator)
    generated = (torch.arange(length) < lengths) & (torch.rand(rows, length, generator=generator) < 0.8)
    generated[:, 0] = True
    mask = generated.clone()
    mask[2] = False  # left out of the loss
    rewards = torch.randint(2, (rows,), generator=generator).double()
    rewards[5] = torch.nan
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    return make_rollouts(
        entropy, advantages, mask, **{"generated": generated, "rewards": rewards, "num_generations": group, **extra}
    )
