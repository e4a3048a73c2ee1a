# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What each trainer is given is checked where it is built, in one line that names the argument and the row."""

import logging

import pytest
import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from support.distilling import TEACHER
from support.self_distillation import OURS, TEXTS, reward, texts
from support.tiny import TRAINING, VOCABULARY, build_dataset, build_model, build_tokenizer
from transformers import T5Config, T5ForConditionalGeneration

from trl_entropy import (
    EntropyDistillationConfig,
    EntropyDistillationTrainer,
    EntropyGRPOConfig,
    EntropyGRPOTrainer,
)
from trl_entropy.trainers import checks
from trl_entropy.trainers.data_checks import FIRST_ROWS, FIRST_STREAMED_ROWS, PROMPT, check_datasets
from trl_entropy.trainers.rewards import read_rewards


FUSED = ("GRPO", "Distillation")
CLASSES = {
    "GRPO": (EntropyGRPOTrainer, EntropyGRPOConfig),
    "Distillation": (EntropyDistillationTrainer, EntropyDistillationConfig),
    **OURS,
}
WITH_TEACHER = ("Distillation", "GKD")


def build(kind, folder, **given):
    """A trainer of this kind on the tiny model; `given` replaces its arguments."""
    trainer_class, config_class = CLASSES[kind]
    length = {} if kind == "GKD" else {"max_completion_length": 4}
    generations = {"num_generations": 2} if kind in ("GRPO", "SDFT", "SDPO") else {}
    settings = {**TRAINING, **length, **generations, **TEXTS.get(kind, {}), "max_steps": 1, "seed": 7}
    settings["per_device_train_batch_size"] = 4
    arguments = dict(model=None, train_dataset=texts(), processing_class=build_tokenizer())
    if "model" not in given:
        arguments["model"] = build_model()
    if kind in WITH_TEACHER:
        arguments["teacher_model"] = given.pop("teacher_model") if "teacher_model" in given else build_model(**TEACHER)
    if kind in ("GRPO", "SDPO"):
        arguments["reward_funcs"] = reward
    return trainer_class(args=config_class(str(folder), **settings), **{**arguments, **given})


def message_of(kind, folder, **given):
    with pytest.raises(ValueError) as error:
        build(kind, folder, **given)
    assert "\n" not in str(error.value)
    return str(error.value)


NEEDED = {
    "GRPO": "the column 'prompt'",
    "Distillation": "the column 'prompt'",
    "SDPO": "the column 'prompt'",
    "SDFT": "the columns 'prompt' and 'privileged_context'",
    "GKD": "the columns 'messages', or 'prompt' and 'input_ids', or 'original_prompt_text' and 'input_ids'",
}


@pytest.mark.parametrize("kind", CLASSES)
def test_datasets(tmp_path, kind):
    other = Dataset.from_dict({"text": ["w1"]})
    for field, dataset in (("train_dataset", other), ("eval_dataset", other), ("eval_dataset", {"own": other})):
        name = "eval_dataset['own']" if isinstance(dataset, dict) else field
        expected = f"`{name}` must have {NEEDED[kind]}, got the columns ['text']."
        assert message_of(kind, tmp_path, **{field: dataset}) == expected
    empty = texts().select([])
    assert message_of(kind, tmp_path, train_dataset=empty).startswith(
        "`train_dataset` must have at least one row, got"
    )


@pytest.mark.parametrize("kind", CLASSES)
def test_models(tmp_path, kind):
    for field in ("model", "teacher_model") if kind in WITH_TEACHER else ("model",):
        for value in (None, "./none", 3):
            accepted = "a model, a name on the Hub, or a folder that exists"
            assert message_of(kind, tmp_path, **{field: value}) == f"`{field}` must be {accepted}, got {value!r}."


@pytest.mark.parametrize("kind", CLASSES)
def test_good_arguments_are_taken(tmp_path, kind):
    build(kind, tmp_path)


def t5():
    return T5ForConditionalGeneration(T5Config(vocab_size=24, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))


@pytest.mark.parametrize("kind", FUSED)
def test_heads_that_cannot_be_fused(tmp_path, kind):
    for field in ("model", "teacher_model") if kind in WITH_TEACHER else ("model",):
        assert message_of(kind, tmp_path, **{field: t5()}) == (
            f"`{field}` must be a model with a decoder only, got T5ForConditionalGeneration, which has an encoder."
        )
        assert message_of(kind, tmp_path, **{field: build_model().model}) == (
            f"`{field}` must have an LM head, got Qwen2Model, which has no output embeddings."
        )
    t5().save_pretrained(tmp_path / "t5")
    assert "`model` must be a model with a decoder only" in message_of(kind, tmp_path, model=str(tmp_path / "t5"))


@pytest.mark.parametrize("kind", FUSED)
def test_quantized_heads(tmp_path, kind):
    """Packed weights have neither the numbers nor the shape of the head."""
    for field in ("model", "teacher_model") if kind in WITH_TEACHER else ("model",):
        model = build_model()
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(192, 1, dtype=torch.uint8), requires_grad=False)
        assert message_of(kind, tmp_path, **{field: model}) == (
            f"`{field}` must have an LM head that is not quantized, got Qwen2ForCausalLM with Linear of torch.uint8 "
            "as its head: the loss reads its weight. Name the head among the modules that the quantization skips."
        )


@pytest.mark.parametrize("kind", FUSED)
def test_trainable_tokens(tmp_path, kind):
    def lora():
        return LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3, 4], r=2)

    tied = build_model(tie_word_embeddings=True)
    assert message_of(kind, tmp_path, model=tied, peft_config=lora()).startswith(
        "`trainable_token_indices` of the PEFT config must be unset for a model with tied embeddings, got Qwen2"
    )
    build(kind, tmp_path, peft_config=lora()).train()


ROWS = {
    "prompt": [None, "", " ", 3, [], [{"role": "user", "content": ""}], [{"role": "user", "content": None}]],
    "privileged_context": [None, ""],
}


@pytest.mark.parametrize("column", ROWS)
def test_rows(column):
    layouts = PROMPT if column == "prompt" else ((column,),)
    for value in ROWS[column]:
        good = [{"role": "user", "content": "w1"}] if isinstance(value, list) else 4 if value == 3 else "w1"
        dataset = (
            Dataset.from_list([{column: good}, {column: value}]) if value != 3 else Dataset.from_list([{column: 3}])
        )
        with pytest.raises(ValueError) as error:
            check_datasets(layouts, train_dataset=dataset)
        row = len(dataset) - 1
        assert f"as {column!r} in each row, got {value!r} in row {row}." in str(error.value)
        assert str(error.value).startswith("`train_dataset` must have ")


@pytest.mark.parametrize("kind", ["GRPO", "Distillation", "SDFT", "SDPO"])
def test_row_without_a_prompt(tmp_path, kind):
    rows = texts().to_list()
    rows[3]["prompt"] = None
    accepted = "text or a list of messages that is not empty as 'prompt' in each row"
    assert message_of(kind, tmp_path, train_dataset=Dataset.from_list(rows)) == (
        f"`train_dataset` must have {accepted}, got None in row 3."
    )


def test_row_without_messages(tmp_path):
    rows = Dataset.from_list([{"messages": [{"role": "user", "content": "w1"}]}, {"messages": None}])
    assert "list of messages that is not empty as 'messages' in each row, got None in row 1." in message_of(
        "GKD", tmp_path, train_dataset=rows
    )


def test_how_far_a_dataset_is_read():
    """The first rows of a large one, fewer of a stream; a transform of the user's is not called."""
    prompts = ["w1"] * FIRST_ROWS + [None]
    check_datasets(PROMPT, train_dataset=Dataset.from_dict({"prompt": prompts}))
    with pytest.raises(ValueError, match=f"got None in row {FIRST_ROWS - 1}."):
        check_datasets(PROMPT, train_dataset=Dataset.from_dict({"prompt": prompts[1:]}))
    read = []

    def stream():
        for number in range(100):
            read.append(number)
            yield {"prompt": None if number == FIRST_STREAMED_ROWS else "w1"}

    check_datasets(PROMPT, train_dataset=IterableDataset.from_generator(stream))
    assert max(read) <= FIRST_STREAMED_ROWS

    def nothing():
        yield from ()

    with pytest.raises(ValueError, match="got a stream without rows."):
        check_datasets(PROMPT, train_dataset=IterableDataset.from_generator(nothing))
    with pytest.raises(ValueError, match="as 'prompt' in each row, got no such column in row 0."):
        check_datasets(PROMPT, train_dataset=IterableDataset.from_generator(lambda: iter([{"text": "w1"}])))

    def transform(batch):
        raise AssertionError("called")

    check_datasets(PROMPT, train_dataset=Dataset.from_dict({"text": ["w1"]}).with_transform(transform))


@pytest.mark.parametrize("kind", ["GRPO", "Distillation", "SDFT", "SDPO"])
def test_tokenizer_without_eos(tmp_path, kind):
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    expected = "`eos_token` of `processing_class` must be a token, got None."
    assert message_of(kind, tmp_path, processing_class=tokenizer) == expected


@pytest.mark.parametrize("kind", CLASSES)
def test_tokenizer_that_is_larger_than_the_embedding(tmp_path, kind, caplog):
    small = dict(vocab_size=VOCABULARY - 4)
    given = dict(model=build_model(**small))
    if kind in WITH_TEACHER:
        given["teacher_model"] = build_model(**TEACHER, **small)
    PartialState()
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        build(kind, tmp_path, **given)
    assert "`processing_class` has 24 tokens, but `model` has 20 embeddings" in caplog.text
    rows = texts().to_list()
    rows[2]["prompt"] = "w1 w21"
    accepted = "must be below 20, the number of embeddings of `model`"
    assert message_of(kind, tmp_path, **given, train_dataset=Dataset.from_list(rows)) == (
        f"Token ids of `processing_class` {accepted}, got 23 in row 2 of `train_dataset`."
    )
    tokenizer = build_tokenizer()
    tokenizer.pad_token = "w20"
    assert message_of(kind, tmp_path, **given, processing_class=tokenizer) == (
        f"`pad_token_id` of `processing_class` {accepted}, got 22."
    )


GOOD_REWARDS = [
    [1.0, None],
    (1, True),
    torch.tensor([0.5, 1.0]),
    [torch.tensor(0.5), torch.tensor([1.0])],
    "generator",
]


@pytest.mark.parametrize("rewards", GOOD_REWARDS, ids=str)
def test_rewards_that_trl_takes(rewards):
    returned = (number for number in (0.5, 1.0)) if rewards == "generator" else rewards
    expected = [0.5, 1.0] if rewards == "generator" else list(rewards)
    assert read_rewards(returned, 2, "own") == expected


@pytest.mark.parametrize(
    "rewards, end",
    [
        (0.5, ", got 0.5."),
        (None, ", got None."),
        ("ab", ", got 'ab'."),
        ({"a": 1.0, "b": 2.0}, ", got {'a': 1.0, 'b': 2.0}."),
        ([0.5], ", one per completion, got 1 rewards."),
        ([0.5, "1.0"], ", got '1.0' for completion 1."),
        ([[0.5, 1.0], 1.0], ", got [0.5, 1.0] for completion 0."),
    ],
    ids=str,
)
def test_rewards_that_it_does_not(rewards, end):
    with pytest.raises(ValueError) as error:
        read_rewards(rewards, 2, "own")
    accepted = "must return a list of 2 numbers or `None`"
    assert str(error.value) == f"The reward function 'own' in `reward_funcs` {accepted}{end}"


def one_number(**columns):
    return 0.5


async def words(completions, **columns):
    return ["good"] * len(completions)


@pytest.mark.parametrize("kind, function", [("GRPO", one_number), ("GRPO", words), ("SDPO", one_number)])
def test_what_a_reward_function_returns(tmp_path, kind, function):
    trainer = build(kind, tmp_path, reward_funcs=function)
    with pytest.raises(ValueError, match=f"^The reward function '{function.__name__}' in `reward_funcs` must return"):
        trainer.train()
    assert trainer.reward_funcs == [function]


@pytest.mark.parametrize("kind", CLASSES)
def test_fsdp_on_a_cpu_is_ddp(tmp_path, caplog, kind):
    PartialState()
    config_class = CLASSES[kind][1]
    settings = {**TRAINING, **TEXTS.get(kind, {}), "per_device_train_batch_size": 8}
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        config_class(str(tmp_path), **settings)
        assert "`fsdp`" not in caplog.text
        config_class(str(tmp_path), fsdp=True, **settings)
    assert "`fsdp` does nothing with `use_cpu`" in caplog.text


@pytest.mark.parametrize("kind", CLASSES)
def test_data_parallel_is_refused(tmp_path, monkeypatch, kind):
    """TRL's experimental trainers do not refuse it themselves."""
    monkeypatch.setattr(CLASSES[kind][1], "n_gpu", 2)
    message = message_of(kind, tmp_path)
    expected = "does not support `nn.DataParallel`, which `Trainer` uses when several GPUs are visible to a single"
    assert message.startswith(f"{CLASSES[kind][0].__name__} {expected} process")
    assert ("got 2 of them" in message) == (kind in ("SDFT", "SDPO"))  # the others are refused by TRL, in these words


def test_dataset_of_another_library_is_left_to_trl():
    rows = [{"prompt": prompt} for prompt in build_dataset()["prompt"]]
    check_datasets(PROMPT, train_dataset=rows)
    with pytest.raises(ValueError, match="must have at least one row, got \\[\\]."):
        check_datasets(PROMPT, train_dataset=[])


@pytest.mark.parametrize("kind, names", [("GRPO", ["model"]), ("Distillation", ["model", "teacher_model"])])
def test_each_model_is_checked_once(tmp_path, monkeypatch, kind, names):
    seen, check_model = [], checks.check_model
    monkeypatch.setattr(checks, "check_model", lambda model, name: (seen.append(name), check_model(model, name)))
    build(kind, tmp_path)
    assert seen == names
