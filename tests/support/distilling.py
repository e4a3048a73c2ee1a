# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tiny student and teacher, trainers, batches, and TIP as the paper writes it, over full logits and token by token."""

import math

import torch
from support.tiny import TRAINING, VOCABULARY, build_dataset, build_model, build_tokenizer


TEACHER = dict(seed=5, hidden_size=24, intermediate_size=40, num_attention_heads=4, num_key_value_heads=4)
LENGTHS = (6, 3, 0, 5)  # of the rollouts of `make_batch`


def build_distiller(
    trainer_class, config_class, output_dir, *, model=None, teacher=None, peft_config=None, **settings
):
    defaults = dict(
        per_device_train_batch_size=4,
        max_completion_length=8,
        learning_rate=0.05,
        max_steps=3,
        **TRAINING,
        seed=7,
    )
    eval_dataset, train_dataset = settings.pop("eval_dataset", None), settings.pop("train_dataset", None)
    return trainer_class(
        model=build_model() if model is None else model,
        teacher_model=build_model(**TEACHER) if teacher is None else teacher,
        args=config_class(str(output_dir), **{**defaults, **settings}),
        train_dataset=build_dataset() if train_dataset is None else train_dataset,
        eval_dataset=eval_dataset,
        processing_class=build_tokenizer(),
        peft_config=peft_config,
    )


def make_batch(lengths=LENGTHS, tools=True, seed=3) -> dict[str, torch.Tensor]:
    """As TRL's `_compute_loss` takes it: ragged, one rollout without a token, one with answers of a tool."""
    generator = torch.Generator().manual_seed(seed)
    rows, length = len(lengths), max(lengths)
    mask = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
    batch = {
        "prompt_ids": torch.randint(2, VOCABULARY, (rows, 3), generator=generator),
        "prompt_mask": torch.ones(rows, 3, dtype=torch.long),
        "completion_ids": torch.randint(2, VOCABULARY, (rows, length), generator=generator) * mask,
        "completion_mask": mask,
        "num_items_in_batch": torch.tensor(7.0),
    }
    if tools:
        batch["tool_mask"] = torch.ones_like(mask)
        batch["tool_mask"][0, 1:3] = 0
    return batch


def distillation_results(output_dir, rank, processes):
    """Loss, gradients, metrics and state over this process' part of eight rollouts, one of the halves almost empty."""
    from trl_entropy import EntropyDistillationConfig, EntropyDistillationTrainer

    whole, rows, found = make_batch(lengths=(6, 3, 0, 5, 1, 0, 2, 0)), 8 // processes, {}
    part = {k: v if v.dim() == 0 else v[rank * rows : (rank + 1) * rows] for k, v in whole.items()}
    for rule, scope in (("soft_or", "world"), ("entropy_sample", "world"), ("q3", "ema")):
        trainer = build_distiller(
            EntropyDistillationTrainer,
            EntropyDistillationConfig,
            output_dir,
            per_device_train_batch_size=rows,
            tip_rule=rule,
            tip_scope=scope,
            tip_ratio=0.4,
        )
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, part)
        loss.backward()
        reduce = trainer.accelerator.reduce
        gradients = {name: reduce(p.grad, "mean") for name, p in trainer.model.named_parameters()}
        metrics = {k: v[-1] for k, v in trainer._metrics["train"].items() if k.startswith("tip/") or k == "entropy"}
        found[rule] = dict(
            loss=reduce(loss.detach(), "mean"), gradients=gradients, metrics=metrics, state=trainer._tip.state_dict()
        )
    return found


def distributions(model, batch, temperature):
    """(B, T, V) log-probabilities of the completion tokens' distributions, from full logits."""
    ids, mask = (torch.cat([batch[f"prompt_{kind}"], batch[f"completion_{kind}"]], 1) for kind in ("ids", "mask"))
    hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    logits = model.lm_head(hidden)[:, -1 - batch["completion_ids"].size(1) : -1].double()
    logits = logits * (getattr(model.config, "logit_scale", None) or 1.0)
    softcap = getattr(model.config, "final_logit_softcapping", None)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return (logits / temperature).log_softmax(-1)


def kl(p, q):
    return (p.exp() * (p - q)).sum(-1)


def jsd(student, teacher, beta):
    if beta in (0.0, 1.0):
        return kl(teacher, student) if beta == 0 else kl(student, teacher)
    mixture = torch.logaddexp(student + math.log(1 - beta), teacher + math.log(beta))
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def quantile(values, probability):
    ordered = sorted(values)
    position = probability * (len(ordered) - 1)
    low = math.floor(position)
    return ordered[low] + (position - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def kept_by_hand(rule, ratio, entropy, reverse, forward, mask):
    """(B, T) bool: the paper's rules with the default clip, one token at a time."""
    valid = [tuple(place) for place in mask.nonzero().tolist()]
    high = quantile([entropy[place].item() for place in valid], 0.98)
    low = min(entropy[place].item() for place in valid)
    far = max(reverse[place].item() for place in valid)
    near = min(reverse[place].item() for place in valid)

    def score(place):
        h = (min(entropy[place].item(), high) - low) / (high - low)
        d = (reverse[place].item() - near) / (far - near)
        return {
            "soft_or": h + d - h * d,
            "bottom": -(h + d - h * d),
            "entropy": entropy[place].item(),
            "divergence": reverse[place].item(),
            "q3": forward[place].item() * (1 - h),
        }[rule]

    keep = torch.zeros_like(mask)
    for row in range(len(mask)):
        places = [place for place in valid if place[0] == row]
        count = max(1, math.floor(ratio * len(places))) if places else 0
        for place in sorted(places, key=score, reverse=True)[:count]:
            keep[place] = True
    return keep
