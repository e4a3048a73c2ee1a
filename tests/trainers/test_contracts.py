# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The package's assumptions about TRL's internals. Each test is named after its assumption."""

import inspect
import re

import pytest
import torch
from support import agents, cases
from support.distilling import make_batch
from support.tensors import make_loss_batch
from support.tiny import EXACT, FLOAT32, LOSS_TYPES, build_model, loss_and_gradients
from transformers import Trainer
from trl import DistillationTrainer, GRPOTrainer
from trl.experimental.sdft import SDFTTrainer
from trl.experimental.sdpo import SDPOTrainer
from trl.generation.vllm_generation import VLLMGeneration
from trl.kernels import ChunkedLogProbFunction, chunked_divergence
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.kernels.chunked_logprob import _addmm_fp32
from trl.models.utils import add_hooks, remove_hooks
from trl.trainer import distillation_trainer, grpo_trainer
from trl.trainer import utils as trainer_utils
from trl.trainer.utils import FusedCausalLMOutput, RepeatSampler

from trl_entropy.functional import aggregate
from trl_entropy.head.divergence import Head
from trl_entropy.head.rebinding import rebound, swapped
from trl_entropy.tokens import CLIPPING_LOSSES
from trl_entropy.trainers.distillation import KERNEL, LOSS
from trl_entropy.trainers.rollouts import FORWARD_KEYS
from trl_entropy.trainers.update import Update


def test_compute_loss_makes_its_forward_before_it_reads_the_advantages(make_trainer):
    trainer = make_trainer(stock=True)
    trainer.current_gradient_accumulation_steps = 1
    batch = make_loss_batch()
    read = []

    class Recorder(dict):
        def __getitem__(self, key):
            read.append(key)
            return super().__getitem__(key)

        get = None  # the recorder would miss other ways of reading the advantages

    Recorder.get = lambda self, key, default=None: self[key] if key in self else default
    forward = trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (read.append("forward"), forward(*a, **k))[1]
    trainer._compute_loss(trainer.model, Recorder(batch))
    assert read.count("forward") == 1
    assert read.index("forward") < read.index("advantages")


def test_compute_loss_asks_for_entropies_with_gradient(make_trainer):
    trainer = make_trainer(stock=True)
    trainer.current_gradient_accumulation_steps = 1
    forward, found = trainer._get_per_token_logps_and_entropies, {}

    def spy(*args, **kwargs):
        found["logps"], found["entropy"], aux = forward(*args, **kwargs)
        return found["logps"], found["entropy"], aux

    trainer._get_per_token_logps_and_entropies = spy
    trainer._compute_loss(trainer.model, make_loss_batch())
    assert found["logps"].requires_grad and found["entropy"].requires_grad
    assert found["logps"].shape == found["entropy"].shape == (4, 6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_advantages_may_have_one_value_per_token(make_trainer, loss_type):
    batch = make_loss_batch()
    trainer = make_trainer(stock=True, loss_type=loss_type)
    plain = loss_and_gradients(trainer, batch)
    per_token = loss_and_gradients(trainer, {**batch, "advantages": batch["advantages"][:, None].expand(4, 6)})
    torch.testing.assert_close(per_token, plain, rtol=1e-6, atol=1e-7)


def test_extra_tensors_travel_with_the_rollouts(make_trainer):
    """They survive the shuffle and the split into micro-batches, row by row."""
    trainer = make_trainer(stock=True, steps_per_generation=2)
    generate = trainer._generate_and_score_completions

    def tagged(inputs):
        output = generate(inputs)
        output["old_entropies"] = output["completion_ids"].float() * 10
        return output

    trainer._generate_and_score_completions = tagged
    trainer._prepare_inputs([{"prompt": "w1 w2"}] * 8)
    assert len(trainer._buffered_inputs) == 2
    for batch in trainer._buffered_inputs:
        torch.testing.assert_close(batch["old_entropies"], batch["completion_ids"].float() * 10, **EXACT)


def test_tool_mask_takes_tokens_out_of_the_loss_only(make_trainer):
    """It does not change attention: the loss equals that of a batch whose denominators exclude the tokens."""
    trainer = make_trainer(stock=True, loss_type="bnpo")
    batch = make_loss_batch()
    keep = torch.ones(4, 6, dtype=torch.long)
    keep[:, 1] = 0
    per_token = batch["advantages"][:, None].expand(4, 6) * keep
    loss, gradients = loss_and_gradients(trainer, {**batch, "tool_mask": keep})
    other_loss, other_gradients = loss_and_gradients(trainer, {**batch, "advantages": per_token})
    ratio = (batch["completion_mask"].sum() / (batch["completion_mask"] * keep).sum()).item()
    torch.testing.assert_close(loss, other_loss * ratio, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        gradients["lm_head.weight"], other_gradients["lm_head.weight"] * ratio, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_loss_is_reduced_as_we_reduce_our_terms(make_trainer, loss_type, accumulation):
    """At ratio 1 and A = 1 each type's loss is the mean of a constant per-token loss."""
    trainer = make_trainer(
        loss_type=loss_type, gradient_accumulation_steps=accumulation, steps_per_generation=2 * accumulation
    )
    batch = {**make_loss_batch(), "advantages": torch.ones(4)}
    batch["num_items_in_batch"] = batch["completion_mask"].sum() * 2 * accumulation
    loss, _ = loss_and_gradients(trainer, batch)
    with torch.no_grad():
        ids, mask = (torch.cat([batch[f"prompt_{k}"], batch[f"completion_{k}"]], 1) for k in ("ids", "mask"))
        logps, _, _ = GRPOTrainer._get_per_token_logps_and_entropies(trainer, trainer.model, ids, mask, 6)
    constant = {"sapo": -2.0, "cispo": -0.2 * logps, "vespo": -logps}.get(loss_type, -1.0)
    update = Update(trainer, batch)
    expected = update.reduce(torch.as_tensor(constant).expand(4, 6), batch["completion_mask"].bool())
    torch.testing.assert_close(loss, expected)
    # A scalar term is scaled for accumulation only.
    assert update.reduce(torch.tensor(3.0), batch["completion_mask"].bool()).item() == 3.0 / accumulation


def test_losses_that_clip():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert f"self.loss_type in {list(CLIPPING_LOSSES)}".replace("'", '"') in source
    assert aggregate(torch.ones(1, 1), torch.ones(1, 1).bool(), "dapo", torch.tensor(4.0), 1) == 0.25


@pytest.mark.parametrize("infinite", [False, True])
def test_clip_range_is_read_from_the_trainer(make_trainer, infinite):
    trainer = make_trainer(stock=True)
    if infinite:
        trainer.epsilon_low = trainer.epsilon_high = torch.inf
    batch = make_loss_batch(old_per_token_logps=torch.full((4, 6), -9.0))
    loss, _ = loss_and_gradients(trainer, batch)
    assert loss.isfinite()
    assert (trainer._metrics["train"]["clip_ratio/region_mean"][0] == 0) == infinite


@pytest.mark.parametrize("loss_type", CLIPPING_LOSSES)
@pytest.mark.parametrize("bounds", [(0.7, 1.1), (-torch.inf, torch.inf), (0.0, torch.inf)])
def test_clip_range_is_read_after_the_forward_and_may_differ_between_tokens(make_trainer, loss_type, bounds):
    """Tensors set in the forward give the loss, gradients and metrics of equal numbers set before it."""
    batch = cases.off_policy_batch(build_model())
    found = []
    for shape in (None, (), (4, 6)):
        trainer = make_trainer(stock=True, loss_type=loss_type)
        values = [1 - bounds[0], bounds[1] - 1]
        if shape is not None:
            values = [torch.full(shape, value, dtype=torch.float64 if shape == () else None) for value in values]
        forward = trainer._get_per_token_logps_and_entropies

        def spy(*args, trainer=trainer, forward=forward, values=values, **kwargs):
            trainer.epsilon_low, trainer.epsilon_high = values
            return forward(*args, **kwargs)

        trainer._get_per_token_logps_and_entropies = spy
        found.append((*loss_and_gradients(trainer, batch), trainer._metrics["train"]["clip_ratio/region_mean"]))
    assert (found[0][2][0] > 0) == (bounds[0] > 0) and all(g.isfinite().all() for g in found[0][1].values())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], **EXACT)


def test_rollouts_are_scored_first_and_stored_as_old_per_token_logps(make_trainer):
    """The first forward of `_generate_and_score_completions`, if TRL makes one, is the old policy's."""
    trainer = make_trainer(stock=True, steps_per_generation=2)
    forward, found = trainer._get_per_token_logps_and_entropies, []

    def spy(*args, **kwargs):
        assert not torch.is_grad_enabled()
        found.append(forward(*args, **kwargs)[0])
        return found[-1], None, None

    trainer._get_per_token_logps_and_entropies = spy
    output = trainer._generate_and_score_completions([{"prompt": "w1 w2"}] * 4)
    assert len(found) == 1 and torch.equal(output["old_per_token_logps"], found[0])
    assert not hasattr(output, "advantages") and output["advantages"].shape == (4,)


def test_forward_takes_the_multimodal_inputs_that_trl_stores():
    parameters = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    for key in FORWARD_KEYS:
        assert key in parameters and f'output["{key}"]' in source
    images = set(list(parameters)[list(parameters).index("pixel_values") :])
    assert images == set(FORWARD_KEYS)


def test_trainer_has_hooks_for_what_it_saves_and_pushes():
    def parameters(name):
        return list(inspect.signature(getattr(GRPOTrainer, name)).parameters)

    assert parameters("save_model") == ["self", "output_dir", "_internal_call"]
    assert parameters("_push_from_checkpoint") == ["self", "checkpoint_folder"]
    assert parameters("_load_optimizer_and_scheduler") == ["self", "checkpoint"]
    assert parameters("create_model_card") == ["self", "model_name", "dataset_name", "tags"]
    # A checkpoint writes its model before it is pushed; the card comes first.
    source = inspect.getsource(Trainer._save_checkpoint)
    assert source.index("self.save_model(") < source.index("self._push_from_checkpoint(")
    source = inspect.getsource(GRPOTrainer._save_checkpoint)
    assert source.index("self.create_model_card(") < source.index("super()._save_checkpoint(")
    assert set(GRPOTrainer._paper) == {"title", "id", "citation"} and GRPOTrainer._name == "GRPO"


def test_table_of_completions_takes_columns_until_rewards_are_made():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    rewards = source.index("self._calculate_rewards(")
    assert rewards < source.index("self._pending_extra_logs.get(column") < source.index("_pending_extra_logs.clear()")


def test_a_completion_without_any_token_is_refused(make_trainer):
    """TRL reads the last token of each completion, so completions are emptied by masks here."""

    def rollout(prompts, trainer):
        return {
            "prompt_ids": [[2]] * len(prompts),
            "completion_ids": [[], *[[3]] * (len(prompts) - 1)],
            "logprobs": None,
        }

    with pytest.raises(IndexError):
        make_trainer(stock=True, rollout_func=rollout).train()


def test_trainer_has_hooks_for_optimizer_state():
    assert list(inspect.signature(GRPOTrainer._save_optimizer_and_scheduler).parameters) == ["self", "output_dir"]
    assert list(inspect.signature(GRPOTrainer._load_optimizer_and_scheduler).parameters) == ["self", "checkpoint"]


def test_constructor_passes_everything_on():
    from trl_entropy import EntropyGRPOTrainer

    ours = list(inspect.signature(EntropyGRPOTrainer.__init__).parameters)
    stock = list(inspect.signature(GRPOTrainer.__init__).parameters)
    assert ours[:4] == stock[:4] == ["self", "model", "reward_funcs", "args"]


def test_distillation_loss_hands_mask_and_heads_to_one_function(make_distiller):
    """`_compute_loss` looks `_chunked_divergence_loss` up in its module, and that one the kernel."""
    names = list(inspect.signature(distillation_trainer._chunked_divergence_loss).parameters)
    assert names == [
        *("student_hidden_states", "teacher_hidden_states", "student_lm_head_weight", "teacher_lm_head_weight"),
        *("completion_mask", "beta", "num_items_in_batch", "student_lm_head_bias", "teacher_lm_head_bias"),
        *("student_logit_scale", "teacher_logit_scale"),
        *("student_final_logit_softcapping", "teacher_final_logit_softcapping", "temperature"),
    ]
    trainer, batch, calls = make_distiller(stock=True), make_batch(), []
    stock = distillation_trainer._chunked_divergence_loss

    def spy(*args, **kwargs):
        calls.append((args, kwargs))
        return stock(*args, **kwargs)

    with swapped(distillation_trainer, LOSS, spy):
        trainer.compute_loss(trainer.model, batch)
    (args, kwargs), *more = calls
    assert not more and len(args) == 6 and distillation_trainer._chunked_divergence_loss is stock
    assert torch.equal(args[4], batch["completion_mask"] * batch["tool_mask"])
    assert kwargs["num_items_in_batch"] == batch["num_items_in_batch"]


@pytest.mark.parametrize("compact", [False, True])
def test_distillation_loss_makes_one_call_of_the_kernel(compact, monkeypatch):
    """It passes all positions in order (valid ones only on Triton devices) and sums the results."""
    arguments = list(inspect.signature(ChunkedDivergenceFunction.forward).parameters)[1:]
    assert len(arguments) == len(Head._fields)
    assert [name.replace("final_logit_softcapping", "softcap") for name in arguments] == list(Head._fields)
    hidden, mask, seen = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]]), []

    class Kernel:
        @staticmethod
        def apply(*args):
            seen.append(Head(*args))
            return torch.arange(1.0, 1 + len(args[0])), torch.arange(2.0, 2 + len(args[0]))

    loss = rebound(distillation_trainer._chunked_divergence_loss, {KERNEL: Kernel, "_use_triton": lambda _: compact})
    heads = dict(student_lm_head_weight=torch.randn(5, 4), teacher_lm_head_weight=torch.randn(5, 4))
    options = dict(student_logit_scale=2.0, teacher_logit_scale=3.0, temperature=0.7)
    softcaps = dict(student_final_logit_softcapping=4.0, teacher_final_logit_softcapping=5.0)
    found = loss(
        hidden, 2 * hidden, completion_mask=mask, beta=0.3, num_items_in_batch=4, **heads, **options, **softcaps
    )
    rows = hidden[mask.bool()] if compact else hidden.view(6, 4)
    assert torch.equal(seen[0].student_hidden, rows) and torch.equal(seen[0].teacher_hidden, 2 * rows)
    assert seen[0][6:] == (0.3, 0.7, 2.0, 4.0, 3.0, 5.0) and len(seen) == 1
    valid = torch.tensor([1.0, 2, 3]) if compact else torch.tensor([1.0, 2, 4])
    assert found[0] == valid.sum() / 4 and found[1] == (valid + 1).sum() and found[2] == 3


def test_divergence_kernel_folds_tiles_into_seven_sums():
    """In this order, each in one buffer for all rows, which the rest of the kernel only reads."""
    for fold in (chunked_divergence._stats_tile, getattr(chunked_divergence._stats_kernel, "fn", None)):
        names = list(inspect.signature(fold).parameters)[4:11] if fold is not None else []
        stems = [name.removesuffix("_ptr") for name in names]
        assert stems == ["s_max", "s_sum", "s_x_sum", "t_max", "t_sum", "t_weighted_gap", "s_weighted_gap"]


def test_divergence_projects_in_float32():
    hidden, weight, bias = torch.randn(3, 4).bfloat16(), torch.randn(5, 4).bfloat16(), torch.randn(5)
    tile = torch.empty(3, 2)
    chunked_divergence._project(tile, hidden, weight, bias, 1, 3, torch.bfloat16)
    torch.testing.assert_close(tile, hidden.float() @ weight[1:3].float().t() + bias[1:3], **FLOAT32)


def test_divergence_kernel_remembers_what_its_backward_reads():
    """It saves nine tensors, the last three with one number per row, and a few attributes."""
    source = inspect.getsource(ChunkedDivergenceFunction.backward)
    read = set(re.findall(r"ctx\.(\w+)", source))
    assert read == {"saved_tensors", "dtypes", "needs_input_grad", "beta", "mode", "kernel_args"}
    saved = source.partition(") = ctx.saved_tensors")[0].rpartition("(")[2]
    assert re.findall(r"\w+", saved) == [*Head._fields[:6], "s_log_z", "t_log_z", "aux"]


def test_distillation_counts_the_tokens_of_an_update_after_generation(make_distiller):
    trainer = make_distiller(stock=True, gradient_accumulation_steps=2)
    batch = trainer._prepare_inputs([{"prompt": "w1 w2"}] * 8)
    assert len(trainer._buffered_inputs) == 2
    counts = [part["completion_mask"].sum() for part in trainer._buffered_inputs]
    assert batch["num_items_in_batch"] == sum(counts)
    batch["num_items_in_batch"] = torch.tensor(1.0)
    trainer.model.train()
    once = trainer.compute_loss(trainer.model, batch)
    batch["num_items_in_batch"] = torch.tensor(4.0)
    assert trainer.compute_loss(trainer.model, batch) * 4 == once


def test_each_epoch_is_one_permutation_of_the_sampler_s_generator():
    """A new sampler, like that of a resumed run, begins with the first epoch."""
    first, again = (RepeatSampler(range(6), mini_repeat_count=2, seed=3) for _ in range(2))
    epochs = [list(first), list(first)]
    assert epochs[0] != epochs[1] and list(RepeatSampler(range(6), mini_repeat_count=2, seed=3)) == epochs[0]
    torch.randperm(again.num_samples, generator=again.generator)
    assert again.shuffle and list(again) == epochs[1]


def test_a_resumed_run_learns_its_epochs_before_it_draws(make_trainer):
    trainer = make_trainer()
    calls, draw, init = [], RepeatSampler.__iter__, trainer._init_training_state
    trainer._init_training_state = lambda *args: (calls.append("epochs"), init(*args))[1]
    sampler = trainer._get_train_sampler(trainer.train_dataset)
    drawing = type("Drawing", (RepeatSampler,), {"__iter__": lambda self: (calls.append("draw"), draw(self))[1]})
    sampler.__class__ = drawing
    trainer._get_train_sampler = lambda *args: sampler
    trainer.train()
    assert calls == ["epochs", "draw"]


# The tool loop


def test_arguments_of_the_tool_loop():
    expected = {
        GRPOTrainer._generate: ["prompts"],
        GRPOTrainer._generate_single_turn: [
            *("prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images")
        ],
        GRPOTrainer._tool_call_loop: [
            *("prompts", "prompt_ids", "completion_ids", "completions", "logprobs", "images", "multimodal_fields")
        ],
    }
    for method, names in expected.items():
        assert list(inspect.signature(method).parameters) == ["self", *names]
    # It is called by position, and what it returns is read by position.
    source = " ".join(inspect.getsource(GRPOTrainer._generate).split())
    assert (
        "( tool_mask, completions, completion_ids, logprobs, tool_call_count, tool_failure_count, tool_images, ) = "
        "self._tool_call_loop( prompts, prompt_ids, completion_ids, completions, logprobs, images, multimodal_fields )"
    ) in source


def test_the_tool_loop_may_be_entered_again(tmp_path, monkeypatch):
    """It runs one round for rows whose first message calls a tool, and asks for all their turns in one call."""
    trainer = agents.build_agent_trainer(tmp_path, stock=True)
    ran, asked = [], []

    def calculator(expression):
        ran.append(expression)
        return "7"

    def turns(contexts, images, fields, num_generations, has_tool_images):
        asked.append((contexts, images, fields, num_generations, has_tool_images, [len(view) for view in views]))
        return [agents.ids_of("<call> calculator expression 2 </call> <eos>") for _ in contexts], [[-1.0] * 6] * 3

    monkeypatch.setattr(trainer, "_generate_single_turn", turns)
    trainer._sync_tool_dicts, trainer._async_tool_dicts = [{"calculator": calculator}] * 5, [{}] * 5
    trainer.max_tool_calling_iterations, trainer.max_completion_length = 1, 20
    said = {"role": "assistant", "content": ""}
    calling = [
        {**said, "tool_calls": [{"type": "function", "function": {"name": name, "arguments": {"expression": word}}}]}
        for name, word in (("calculator", "1"), ("calculator", "2"), ("nothing", "3"), ("calculator", "4"))
    ]
    views = [[calling[0]], [said], [calling[1]], [calling[2]], [calling[3]]]
    ids = [[5] * 6, [5] * 2, [5] * 17, [5] * 10, [5] * 3]  # the third has no room for a result
    values = [[0.5] * len(row) for row in ids]
    before = [row[:] for row in ids]
    masks, seen, found, logps, calls, failures, images = trainer._tool_call_loop(
        [[{"role": "user", "content": "n"}] for _ in ids], [[3, 4]] * 5, ids, views, values, None, {}
    )
    assert ran == ["1", "2", "4"] and (calls, failures) == (4, 1)
    ((contexts, *given, lengths),) = asked
    assert given == [None, {}, 1, False]
    # What does not fit was taken back before the others were asked for, each with its own context.
    assert lengths == [2, 1, 1, 2, 2] and seen is views and found is ids and logps is values
    assert [context[:2] for context in contexts] == [[3, 4]] * 3
    result = agents.ids_of("<tool> 7 <eos> <assistant>")
    error = agents.ids_of("<tool> {'error': 'Tool nothing not found.'} <eos> <assistant>")
    turn = agents.ids_of("<call> calculator expression 2 </call> <eos>")
    assert found == [before[0] + result + turn, before[1], before[2], (before[3] + error + turn)[:20],
                     before[4] + result + turn]  # fmt: skip
    # The mask starts again, values are added to.
    assert masks[0] == [1] * 6 + [0] * 4 + [1] * 6 and logps[0] == [0.5] * 6 + [0.0] * 4 + [-1.0] * 6
    assert [message["role"] for message in seen[0]] == ["assistant", "tool", "assistant"]
    assert seen[0][-1]["tool_calls"] and images == [[]] * 5
    assert trainer._get_tool_suffix_ids(seen[0][1:2]) == result


def test_the_first_log_probability_of_the_engine_is_taken():
    """And it is asked with `logprobs` as that is at the time, by keyword, for prompts that repeat in turn."""
    source = inspect.getsource(GRPOTrainer._generate_single_turn)
    assert "logprobs = [[lp[0] for lp in seq] for seq in logprobs]" in source
    assert "_, completion_ids, logprobs, _ = self.vllm_generation.generate(" in source
    engine = inspect.getsource(VLLMGeneration.generate)
    assert engine.count('"logprobs": self.logprobs') == 2 and "all_prompts[::num_generations]" in engine
    assert list(inspect.signature(VLLMGeneration.generate).parameters) == [
        *("self", "prompts", "images", "num_generations", "profiler")
    ]


def test_the_engine_gives_as_many_log_probabilities_as_vllm_does_by_default():
    """20, which `branching_logprobs` must not exceed. TRL lets no one raise it."""
    assert "max_logprobs" not in inspect.getsource(VLLMGeneration)


def test_environments_are_pooled_and_their_tools_bound(tmp_path):
    """The pool has one that is not used yet. A row's tools are methods of its environment."""
    trainer = agents.build_agent_trainer(tmp_path, stock=True, environment=agents.Notebook)
    ((fresh,),) = trainer._environment_pool.values()
    assert isinstance(fresh, agents.Notebook) and not hasattr(fresh, "lines")
    agents.roll_out(trainer)
    assert trainer.environments[0] is fresh and len(trainer._environment_pool[None]) == agents.ROWS
    for environment, tools in zip(trainer.environments, trainer._sync_tool_dicts, strict=True):
        assert tools["calculator"].__self__ is environment
    assert trainer._batch_environments == [None] * agents.ROWS and len(trainer._env_tools[None]) == 1


def arguments(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_generation_tokenizes_then_generates_then_scores():
    """Each step is a method of its own, which the next one calls with these arguments."""
    assert arguments(GRPOTrainer._generate) == arguments(GRPOTrainer._tokenize_prompts) == ["prompts"]
    turn = ["prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"]
    assert arguments(GRPOTrainer._generate_single_turn) == turn
    turn.remove("num_generations")
    assert arguments(DistillationTrainer._generate_single_turn) == turn
    source = inspect.getsource(GRPOTrainer._generate)
    assert source.index("self._tokenize_prompts(") < source.index("self._generate_single_turn(")
    assert "self._generate(" in inspect.getsource(GRPOTrainer._generate_and_score_completions)


def test_rollouts_are_logged_with_their_advantages(make_trainer):
    """`_logs` has one advantage per completion, `_metrics` lists by mode, and `_step` counts the forwards."""
    trainer = make_trainer(stock=True)
    assert trainer._step == 0 and trainer._metrics.keys() == {"train", "eval"}
    trainer._generate_and_score_completions([{"prompt": "w1 w2"}] * 4)
    assert len(trainer._logs["advantages"]) == 4 and trainer._tokenizer is trainer.processing_class
    assert trainer._is_vlm is False and trainer._get_output_dir(trial=None) == trainer.args.output_dir
    trainer.train()
    assert trainer._step == trainer.state.max_steps * trainer.args.gradient_accumulation_steps
    assert GRPOTrainer._tag_names == ["trl", "grpo"] and isinstance(trainer._last_world_entropy, float)


def test_trainer_notes_that_it_created_the_scheduler(make_trainer):
    """`_created_lr_scheduler`: it is then made again in the next training."""
    trainer = make_trainer(stock=True)
    trainer.create_optimizer()
    assert trainer._created_lr_scheduler is False
    trainer.create_scheduler(4)
    assert trainer._created_lr_scheduler is True


@pytest.mark.parametrize("trainer", [SDFTTrainer, SDPOTrainer])
def test_self_distillation_computes_logits_and_then_their_loss(trainer):
    assert arguments(trainer._compute_teacher_student_logits) == ["model", "teacher_model", "inputs"]
    assert arguments(trainer._compute_self_distillation_loss) == ["model", "inputs", "distillation_logits"]
    assert arguments(Trainer._get_num_items_in_batch) == ["batch_samples", "device"]


def test_head_takes_these_arguments_and_returns_these_outputs():
    head = ["model", "temperature", "cast_lm_head_to_fp32", "outputs"]
    assert arguments(trainer_utils.add_fused_lm_head) == head
    kernel = ["ctx", "hidden", "weight", "bias", "targets", "temperature", "chunk_size", "final_logit_softcapping"]
    assert arguments(ChunkedLogProbFunction.forward) == [*kernel, "logit_scale", "outputs"]
    outputs = ["loss", "log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask", "aux_loss"]
    assert list(FusedCausalLMOutput.__dataclass_fields__) == outputs
    assert [p.kind for p in inspect.signature(trainer_utils.maybe_gather_lm_head_ctx).parameters.values()] == [
        inspect.Parameter.VAR_POSITIONAL
    ]


def test_products_are_added_in_float32():
    total, a, b = torch.ones(2, 3), torch.randn(2, 4).bfloat16(), torch.randn(4, 3).bfloat16()
    expected = 1 + a.float() @ b.float()
    assert _addmm_fp32(total, a, b) is None
    torch.testing.assert_close(total, expected, **FLOAT32)


def test_helpers_of_trl_take_these_arguments():
    for name in ("split_pixel_values_by_grid", "unsplit_pixel_values_by_grid"):
        assert arguments(getattr(trainer_utils, name)) == ["batch"]
    assert arguments(trainer_utils.pad) == ["tensors", "padding_value", "padding_side", "pad_to_multiple_of"]
    assert arguments(grpo_trainer.parse_response) == ["tokenizer", "ids", "prefix", "tools"]
    assert arguments(trainer_utils.split_tensor_dict) == ["tensor_dict", "num_chunks"]
    assert arguments(trainer_utils.get_config_model_id) == ["config"]
    assert arguments(trainer_utils.is_async_callable) == ["func"]
    assert arguments(trainer_utils.get_comet_experiment_url) == arguments(trainer_utils.get_trackio_space_url) == []
    assert arguments(add_hooks) == arguments(remove_hooks) == ["model"]
