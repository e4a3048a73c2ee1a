# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card of a trainer: facts that it knows about its run, and facts that it is given."""

import os
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from transformers import is_wandb_available
from trl.trainer.utils import get_comet_experiment_url, get_config_model_id, get_trackio_space_url

from .base import MixinBase
from .card import build_card, described, draw_curve, last_values, papers_of, points_of, watched
from .card_facts import findings_of, hardware_of, meanings_of, thermostat_facts, time_of
from .card_sources import base_of, hub_id, license_of
from .provenance import command_line


def wandb_url() -> str | None:
    """The URL of this process's W&B run; `None` if there is no run or it is offline."""
    if not is_wandb_available():
        return None
    import wandb

    return None if wandb.run is None else wandb.run.url


class CardHooks(MixinBase):
    """The part of a trainer that writes model cards. A mixin: it comes before TRL's trainer.

    Reads from `args`: the fields of the methods, `given_settings` (the settings that were given), `tunings` (what
    chose the weights to train), `watching` (monitors) and `watching_papers` (what else they compute). The last
    three are cited besides the methods.

    Attributes:
        methods: methods to cite.
        card_metrics: keys of the log. The card shows their last values in training and in evaluation.
        card_facts: facts that no trainer knows by itself, for cards written during training: `dataset_name`, `license`
            and `results`, as in `create_model_card`, `recipe`, settings to show before those of `args`, `evaluation`
            and `limitations`, sentences about the results and about the model, and `meanings`, what each result is.
    """

    methods: list[Any] = []  # of `Method` or `Tip`
    card_metrics: tuple[str, ...] = ("reward", "entropy", "completions/mean_length")
    card_facts: dict[str, Any] = {}

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        license: str | None = None,
        results: dict[str, float] | None = None,
    ) -> None:
        """
        Writes the model card, `README.md`, to `output_dir`, and a plot of the entropy if matplotlib is installed.

        Args:
            model_name (`str`, *optional*):
                Name of the model. Defaults to the name of the repository or folder.
            dataset_name (`str`, *optional*):
                Dataset on the Hub that the model was trained on. A local path is left out.
            tags (`str` or `list[str]`, *optional*):
                Tags to add to those of the trainer and the names of its methods.
            license (`str`, *optional*):
                License of the model. Defaults to the license in the base model's card.
            results (`dict[str, float]`, *optional*):
                Evaluation results to show next to the last metrics of training. Values are numbers; scalars of NumPy
                and PyTorch are accepted. Values that are not finite are left out.

        Raises:
            `ValueError`: a result is not a number.
        """
        if not self.is_world_process_zero():
            return
        given = dict(dataset_name=dataset_name, license=license, results=results)
        facts = self.card_facts | {key: value for key, value in given.items() if value is not None}
        source = hub_id(get_config_model_id(self.model.config))
        dataset_name = hub_id(facts.get("dataset_name"))
        license = facts.get("license")
        repository = self.hub_model_id or self.args.hub_model_id
        base_model = base_of(source) if source and source == repository else source  # trained further in place
        history = self.state.log_history
        entropies = [value for _, value in points_of(history, "entropy")]
        metrics = {
            "train": last_values(history, self.card_metrics),
            "eval": last_values(history, [f"eval_{key}" for key in self.card_metrics]),
            "test": facts.get("results") or {},
        }
        names = [name for values in metrics.values() for name in values]
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        links = {
            "Weights & Biases": wandb_url(),
            "Trackio": get_trackio_space_url(),
            "Comet": get_comet_experiment_url(),
        }
        identity = {"model_name_or_path": source, "dataset_name": dataset_name}
        card = build_card(
            model_name=model_name or Path(repository or self.args.output_dir).name,
            model_id=repository or "path/to/model",
            base_model=base_model,
            dataset_name=dataset_name,
            license={"license": license} if license else license_of(source) if source else {},
            library_name="peft" if is_peft_model(self.model) else "transformers",
            tags=self._card_tags(tags),
            metrics=metrics,
            recipe={key: value for key, value in identity.items() if value is not None}
            | facts.get("recipe", {})
            | self.args.given_settings,
            trainer_name=self._name,
            papers=papers_of(
                self._paper, [*self.methods, *self.args.tunings, *self.args.watching], self.args.watching_papers
            ),
            methods=[described(method, self.args) for method in self.methods],
            tuning=[described(method, self.args) for method in self.args.tunings],
            conversational=getattr(tokenizer, "chat_template", None) is not None,
            curve=draw_curve(history, self.args.output_dir),
            watched=watched(history, self.args.watching),
            entropy=(entropies[0], entropies[-1]) if entropies else None,
            steps=self.state.global_step,
            links={name: url for name, url in links.items() if url is not None},
            command=command_line(),
            processes=self.accelerator.num_processes,
            seed=self.args.seed,
            hardware=hardware_of(self.accelerator.device, self.accelerator.num_processes),
            time=time_of(history),
            thermostat=thermostat_facts(self),
            findings=findings_of(self),
            doses=getattr(self.args, "dose_warnings", []),
            meanings=meanings_of(names, facts.get("meanings") or {}),
            evaluation=facts.get("evaluation"),
            limitations=facts.get("limitations"),
        )
        card.save(os.path.join(self.args.output_dir, "README.md"))

    def _card_tags(self, tags: str | list[str] | None) -> list[str]:
        """The tags of the trainer, the given ones, and those of the platform; each once."""
        found = [*self._tag_names, *([tags] if isinstance(tags, str) else tags or [])]
        found += ["hf_jobs"] if "JOB_ID" in os.environ else []
        url = get_trackio_space_url()
        if url is not None:  # the Hub embeds the Space that this tag names
            found = [*(tag for tag in found if not tag.startswith("trackio:")), f"trackio:{url}"]
        return list(dict.fromkeys(found))
