# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Prompts with images: entropies from every source are those of the model that sees the images."""

import pytest
import torch
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


WORDS = ["<pad>", "<eos>", "<image>", "user", "assistant", *(f"w{index}" for index in range(19))]
SIDE, PATCH = 8, 4  # image size in pixels: four tokens each
TEMPLATE = (
    "{% for message in messages %}{{ message.role }} {% for part in message.content %}"
    "{{ '<image> ' if part.type == 'image' else part.text + ' ' }}{% endfor %}{% endfor %}"
    "{{ 'assistant' if add_generation_prompt }}"
)
seen = []


def entropy_reward(completions, completion_ids, token_entropies, **kwargs):
    seen.append((completion_ids, token_entropies))
    return [sum(values) for values in token_entropies]


def build_processor() -> LlavaProcessor:
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def build_vision_model() -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    layers = dict(num_hidden_layers=2, num_attention_heads=2, initializer_range=0.5)
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, projection_dim=8, image_size=SIDE, patch_size=PATCH, **layers
    )
    text = Qwen2Config(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        **layers,
    )
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_id=WORDS.index("<image>"),
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


def image(index: int) -> Image.Image:
    """Four patches, each with its own color."""
    picture = Image.new("RGB", (SIDE, SIDE))
    for patch in range(4):
        colour = tuple((90 * index + 60 * patch + 80 * channel) % 256 for channel in range(3))
        picture.paste(
            colour, (PATCH * (patch % 2), PATCH * (patch // 2), PATCH * (patch % 2 + 1), PATCH * (patch // 2 + 1))
        )
    return picture


def build_vision_dataset() -> Dataset:
    """Prompts of different lengths, each with its own image."""
    questions = ["w1 w2", "w3 w4 w5", "w6", "w7 w8"]
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": question}] for question in questions],
            "image": [image(index) for index in range(len(questions))],
        }
    )


@torch.no_grad()
def direct_entropies(trainer, output, blind: bool = False) -> torch.Tensor:
    """(B, T) from the model's own logits on the stored rollouts; `blind` is the model that sees black images."""
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
    pixels = output["pixel_values"] * (0 if blind else 1)
    model = build_vision_model()
    model.load_state_dict(trainer.model.state_dict())
    logits = model.eval()(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
    logps = (logits[:, output["prompt_ids"].size(1) - 1 : -1] / trainer.temperature).log_softmax(-1)
    return -(logps.exp() * logps).sum(-1)


@pytest.mark.parametrize(
    "settings, forwards",
    [
        (dict(), 1),
        (dict(fused_head=False), 1),
        (dict(num_iterations=2), 1),
        (dict(record_entropies=True, temperature=0.8), 0),
    ],
    ids=str,
)
def test_entropies_are_those_of_the_model_that_sees_the_image(make_trainer, settings, forwards):
    seen.clear()
    trainer = make_trainer(
        model=build_vision_model(),
        processing_class=build_processor(),
        reward_funcs=entropy_reward,
        train_dataset=build_vision_dataset(),
        **{"gradient_accumulation_steps": 2, "steps_per_generation": 2, **settings},
    )
    made = []
    forward = trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (made.append(k), forward(*a, **k))[1]
    rows = trainer.train_dataset.select([0] * 4 + [1] * 4)
    output = trainer._generate_and_score_completions(list(rows))
    ((completion_ids, entropies),) = seen
    assert len(made) == forwards and output["pixel_values"].shape == (8, 3, SIDE, SIDE)
    expected, blind = direct_entropies(trainer, output), direct_entropies(trainer, output, blind=True)
    for row, ids in enumerate(completion_ids):
        assert len(entropies[row]) == len(ids)
        torch.testing.assert_close(torch.tensor(entropies[row]), expected[row, : len(ids)], rtol=0, atol=1e-5)
        assert (expected[row, 0] - blind[row, 0]).abs() > 1e-3
    trainer.train()


def test_prompts_with_images_get_no_prefill(make_trainer):
    """Templates with a prefill are not drawn; if there are no others, that is an error."""
    templates = {"open": {"prefill": "w11"}, "plain": {"user": "{prompt} w12"}}
    settings = dict(
        methods=["prompt_augmentation"],
        prompt_augmentation_eval="plain",
        model=build_vision_model(),
        processing_class=build_processor(),
        train_dataset=build_vision_dataset(),
        steps_per_generation=2,
    )
    trainer = make_trainer(prompt_augmentation_templates=templates, **settings)
    rows = list(trainer.train_dataset.select([0] * 4 + [1] * 4))
    output = trainer._generate_and_score_completions(rows)
    assert (output["prompt_ids"] == WORDS.index("w12")).any(1).all() and "pixel_values" in output
    settings["prompt_augmentation_eval"] = "open"
    trainer = make_trainer(prompt_augmentation_templates={"open": templates["open"]}, **settings)
    with pytest.raises(ValueError, match="`prompt_augmentation_templates` must name a template without `prefill` for"):
        trainer._generate_and_score_completions(rows)


def test_fields_of_a_processor_grow_with_the_prefill(make_trainer, monkeypatch):
    """Where prompts are of text only, a processor may still return one value per token."""
    processor = build_processor()
    apply = processor.apply_chat_template

    def with_types(*args, **kwargs):
        found = apply(*args, **kwargs)
        return {**found, "token_type_ids": [[1] * len(ids) for ids in found["input_ids"]]}

    monkeypatch.setattr(processor, "apply_chat_template", with_types)
    trainer = make_trainer(
        methods=["prompt_augmentation"],
        prompt_augmentation_templates={"open": {"prefill": "w11 w12"}},
        model=build_vision_model(),
        processing_class=processor,
        train_dataset=build_vision_dataset().remove_columns("image"),
    )
    prompt = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w11 w12"}]
    ids, images, fields = trainer._tokenize_prompts([prompt])
    assert images is None and ids[0][-2:] == [WORDS.index("w11"), WORDS.index("w12")]
    assert fields["token_type_ids"] == [[1] * (len(ids[0]) - 2) + [0, 0]]
