# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`EntropyGRPOTrainer`: runs the chosen methods around TRL's own loss.

TRL computes the loss. A method changes the inputs of the loss and adds terms to it. Two objects hold the state for the
methods: a [`Generation`] while TRL makes rollouts, and an [`Update`] while it computes a loss.
"""

import inspect
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from accelerate.logging import get_logger
from torch import Tensor
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from ..collectives import collectives_of
from ..diagnosis.callback import add_diagnosis
from ..head import add_entropy_head, check_head
from ..head.agreement import is_sharded
from ..head.forwards import bind_to_module
from ..head.zero3 import forget_order
from ..kappa.wiring import with_kappa
from ..methods import Method, build_methods
from ..monitors.callback import add_monitors
from ..runs.mixin import RunMixin
from ..runs.token_log import SettingsCallback, TokenLog
from ..uncertainty.callback import attach_callbacks
from .checks import (
    check_built,
    check_given,
    check_none_changes_prompts,
    check_rewards,
    refuse_unsloth,
)
from .data_checks import PROMPT
from .entropy_bonus import EntropyBonus
from .environments import check_branching
from .forecast import EntropyForecast
from .generation import Generation
from .grpo_config import EntropyGRPOConfig
from .head_statistics import HeadStatistics
from .metrics import reduce_metrics
from .pass_rates import PassRates, pass_keys
from .prefill import tokenize_prefilled
from .refined_schedule import RefinesSchedule
from .replay import Replay, refuse_images
from .replay_files import load_replay, save_replay
from .rewards import Rewards
from .rollouts import make_rollouts
from .signature import args_of, like
from .thermostat import Thermostat, ThermostatCallback
from .thermostat_config import for_methods
from .update import Update
from .window import join_metrics


logger = get_logger(__name__)


class EntropyGRPOTrainer(RunMixin, RefinesSchedule, GRPOTrainer):
    """
    [`~trl.GRPOTrainer`] with entropy methods. With `methods` empty and `fused_head=False`, losses and gradients are
    those of `GRPOTrainer` to the bit.

    A reward function may have a parameter `token_entropies`: one list per completion, with the old policy's entropy in
    nats at each token, at the sampling temperature. At tool results it is 0, and the parameter `token_mask` is
    `False`. Entropies are free if TRL scores the rollouts anyway. Otherwise they cost one forward without gradient.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy to train, or its name on the Hub or folder.
        reward_funcs (`RewardFunc` or `list[RewardFunc]`, *optional*):
            Reward functions or models, as TRL takes them. Methods may add rewards of their own.
        args ([`EntropyGRPOConfig`], *optional*):
            Settings. Defaults to an `EntropyGRPOConfig` without methods, in a folder named after the model.
        kwargs:
            All other arguments of [`~trl.GRPOTrainer`], by position or name.

    Raises:
        `TypeError`: `args` is not an `EntropyGRPOConfig`.
        `ValueError`: the model, a reward function, a dataset or the tokenizer is not what the trainer can use, or the
            fused LM head does not compute the model's own logits. If the model is sharded, the last is found in the
            first forward.
        `RuntimeError`: Unsloth has patched TRL's trainer.

    Example:

    ```python
    from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer

    trainer = EntropyGRPOTrainer(
        model="Qwen/Qwen3-0.6B",
        reward_funcs=accuracy_reward,
        args=EntropyGRPOConfig("out", methods=["clip_cov"], steps_per_generation=8),
        train_dataset=dataset,
    )
    trainer.train()
    ```

    A reward function that takes entropies:

    ```python
    def confident_reward(completions, token_entropies, **kwargs):
        return [-sum(entropies) / len(entropies) for entropies in token_entropies]
    ```
    """

    _tag_names = ["trl", "grpo", "trl-entropy"]
    epsilon_low: float
    epsilon_high: float

    @like(GRPOTrainer, EntropyGRPOConfig)
    def __init__(
        self,
        model: "str | PreTrainedModel",
        reward_funcs=None,
        args: EntropyGRPOConfig | None = None,
        *positional,
        **keywords,
    ):
        refuse_unsloth(type(self))
        given = inspect.signature(GRPOTrainer).bind(model, reward_funcs, args, *positional, **keywords).arguments
        writes_prompts = given.get("environment_factory") is not None
        check_given(given, None if writes_prompts else PROMPT)
        check_rewards(reward_funcs)
        args = given["args"] = args_of(given, EntropyGRPOConfig, "GRPO")
        self.methods: list[Method] = build_methods(for_methods(args))
        self._changes_prompts = any(method.overrides("prompts") for method in self.methods)
        self._generation: Generation | None = None  # while rollouts are made
        self._update: Update | None = None  # while a loss is computed
        # Extra rollouts, or a replay, by method, in parts of the last batch; `None` while nothing is replayed
        self._auxiliary: dict[str, list[dict[str, Any]] | None] = {}
        self._replays: dict[str, Replay] = {}
        if writes_prompts:
            check_none_changes_prompts(self.methods)
        super().__init__(**with_kappa(GRPOTrainer, **given))
        check_built(self)
        if args.record_entropies and self.rollout_func is not None:
            raise ValueError("`record_entropies` must be false with `rollout_func`, got True.")
        self._world = collectives_of(self.accelerator)
        self._tag_names = [*self._tag_names, *args.methods]
        self.card_facts = {}
        self.model.add_model_tags(self._tag_names)
        self.add_callback(SettingsCallback)
        add_diagnosis(self)
        add_monitors(self)
        attach_callbacks(self)
        self._set_up_methods()

    def _set_up_methods(self) -> None:
        """Sets up what the methods need once TRL's trainer is built."""
        args = self.args
        decode = partial(self._tokenizer.decode, clean_up_tokenization_spaces=False)
        self._pass_rates = PassRates(self.reward_func_names)  # of the user's functions
        self.card_metrics = (*self.card_metrics, *pass_keys(self.num_generations, self.num_generations_eval))
        self._rewards = Rewards(self, self.methods, self._ask_for_reward)
        tools = bool(self.tools) or self.environment_factories is not None or self.rollout_func is not None
        for method in self.methods:
            for warning in method.check_tools(tools):
                logger.warning(warning)
            method.setup(decode)
            if "replay" in method.needs:
                refuse_images(method, self.train_dataset)
                self._replays[method.name] = Replay(self, method)
        self._branching = next((method for method in self.methods if "branched_rollouts" in method.needs), None)
        if self._branching is not None:
            check_branching(self, self._branching.name)
        self._needs = set().union(*(method.needs for method in self.methods))
        forecasts = args.entropy_forecast or "second_moments" in self._needs
        self._needs |= {"second_moments"} if forecasts else set()
        self._forecast = EntropyForecast() if forecasts else None
        self._bonus = EntropyBonus(args)
        self._thermostat = Thermostat.of(self)
        if self._thermostat is not None:
            self.add_callback(ThermostatCallback(self._thermostat))
        self._token_log = TokenLog(
            args.log_token_entropies if self.accelerator.is_main_process else 0, args.output_dir, decode
        )
        for model in (self.model, self.ref_model):
            bind_to_module(model)
        head = None
        if args.fused_head:
            head = add_entropy_head(self.model, self.temperature, args.cast_lm_head_to_fp32)
        self._checks_head = is_sharded(self.accelerator, self.model)  # in the first forward, once it is wrapped
        if not self._checks_head:
            self._check_head(self.model)
        self._statistics = HeadStatistics(head, self.methods, self._needs, self.temperature)

    def _check_head(self, model: Any) -> None:
        unwrapped = self.accelerator.unwrap_model(model)
        check_head(model, self.temperature, unwrapped, self.accelerator.autocast())

    # Rollouts

    def _generate_and_score_completions(self, inputs):
        return make_rollouts(self, super()._generate_and_score_completions, inputs)

    def _generate(self, prompts):
        return self._generation.generate(super()._generate, prompts)

    def _generate_single_turn(self, *args, **kwargs):
        output = self._generation.generate_turn(super()._generate_single_turn, *args, **kwargs)
        if not self.args.ds3_gather_for_generation:
            forget_order(self.model_wrapped)
        return output

    def _tool_call_loop(self, *args):
        return self._generation.run_tools(super()._tool_call_loop, super()._generate_single_turn, *args)

    def _tokenize_prompts(self, prompts):
        stock = super()._tokenize_prompts
        return tokenize_prefilled(stock, prompts, self._tokenizer) if self._changes_prompts else stock(prompts)

    def _calculate_rewards(self, *args):
        return self._generation.reward(super()._calculate_rewards, *args)

    def _ask_for_reward(self, method: Method, **columns: Any) -> list[float | None]:
        return self._generation.ask(method, **columns)

    # Loss

    def _compute_loss(self, model, inputs):
        return Update(self, inputs).loss(super()._compute_loss, model)

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        return self._forward(super()._get_per_token_logps_and_entropies, *args, **kwargs)

    def get_high_entropy_mask(self, *args, **kwargs):
        stock = super().get_high_entropy_mask
        make = stock if self._update is None else partial(self._update.high_entropy_mask, stock)
        return make(*args, **kwargs)

    def _forward(
        self,
        stock: Callable,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *args,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """TRL's forward. Its results also go to the current [`Generation`], in its scoring pass, or [`Update`]."""
        if self._checks_head and model is not self.ref_model:
            self._checks_head = False
            self._check_head(self.model_wrapped)  # TRL scores rollouts with the model below it
        scores = self._generation is not None and self._generation.is_scoring_pass(model)
        mask = attention_mask
        if scores:  # free, because the head always computes entropies
            kwargs["compute_entropy"] = True
            mask = self._generation.attention_mask(attention_mask, logits_to_keep)
        with self._statistics.recorded() as recorded:
            logps, entropy, aux_loss = stock(model, input_ids, mask, logits_to_keep, *args, **kwargs)
        statistics = recorded.statistics(logps.size(1))
        if scores:
            logps = self._generation.keep_scores(logps, entropy, statistics, attention_mask)
        if self._update is not None:
            self._update.take_turns(logps, entropy, statistics)
        return logps, entropy, aux_loss

    # Logs and checkpoints

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        join_metrics(self._metrics["train" if self.model.training else "eval"])
        super().log(logs, start_time)
        if self.model.training:
            self._token_log.write(self.state.global_step)

    def _log_values(self, values: dict[str, Tensor], mask: Tensor) -> None:
        log = self._metrics["train" if self.model.training else "eval"]
        for key, value in reduce_metrics(values, mask, self._world).items():
            log[key].append(value)

    def _save_checkpoint(self, model, trial):
        folder = os.path.join(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if not self.args.save_only_model:
            for memory in self._saved_replays:  # first, as a checkpoint with a `trainer_state.json` counts as whole
                save_replay(memory, folder)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            for memory in self._saved_replays:
                load_replay(memory, checkpoint)

    @property
    def _saved_replays(self) -> list[Replay]:
        return [memory for memory in self._replays.values() if memory.method.saves_memory]

    @property
    def _stateful(self) -> dict[str, Any]:
        parts: dict[str, Any] = {method.name: method for method in self.methods}
        parts |= {"entropy_bonus": self._bonus} if self._bonus.controller is not None else {}
        parts |= {"entropy_keep": self._thermostat} if self._thermostat is not None else {}
        return parts | ({"entropy_forecast": self._forecast} if self._forecast is not None else {})
