# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card of a trainer: what it knows of its run, and what it is told."""

import os
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from transformers import is_wandb_available
from trl.trainer.utils import get_comet_experiment_url, get_config_model_id, get_trackio_space_url

from ..kappa.config import KappaTune
from ..methods import Method
from .card import build_card, described, draw_curve, last_values, papers_of, points_of
from .card_sources import base_of, hub_id, license_of
from .provenance import command_line


def wandb_url() -> str | None:
    """Where the W&B run of this process can be seen; `None` in offline mode."""
    if not is_wandb_available():
        return None
    import wandb

    return None if wandb.run is None else wandb.run.url


class CardHooks:
    """The part of a trainer that writes model cards. Mixed in before TRL's trainer.

    Attributes:
        methods: cited in the card; `args` has their fields, and as `given_settings` what was set.
        card_metrics: keys of the log whose last values the card shows, of training and of evaluation.
        card_facts: what no trainer knows by itself, for cards written while training: `dataset_name`, `license`,
            `results`, as `create_model_card` takes them, and `recipe`, settings that stand before those of `args`.
    """

    methods: list[Method] = []
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
        Writes the model card, `README.md`, and with matplotlib the curve of the entropy to `output_dir`.

        Args:
            model_name (`str`, *optional*):
                Name of the model. Defaults to that of the repository or folder.
            dataset_name (`str`, *optional*):
                Dataset on the Hub that the model was trained on. A local path is left out.
            tags (`str` or `list[str]`, *optional*):
                Tags, beside those of the trainer and the names of its methods.
            license (`str`, *optional*):
                Licence of the model. Defaults to the one that the card of the base model names.
            results (`dict[str, float]`, *optional*):
                Evaluation results to show beside the last metrics of training: numbers, also scalars of NumPy or
                PyTorch. Those that are not finite are left out.

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
        base_model = base_of(source) if source and source == repository else source  # trained further where it lies
        history = self.state.log_history
        entropies = [value for _, value in points_of(history, "entropy")]
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        links = {
            "Weights & Biases": wandb_url(),
            "Trackio": get_trackio_space_url(),
            "Comet": get_comet_experiment_url(),
        }
        tuning = [KappaTune] if self.args.kappa_mode != "none" else []
        identity = {"model_name_or_path": source, "dataset_name": dataset_name}
        card = build_card(
            model_name=model_name or Path(repository or self.args.output_dir).name,
            model_id=repository or "path/to/model",
            base_model=base_model,
            dataset_name=dataset_name,
            license={"license": license} if license else license_of(source) if source else {},
            library_name="peft" if is_peft_model(self.model) else "transformers",
            tags=self._card_tags(tags),
            metrics={
                "train": last_values(history, self.card_metrics),
                "eval": last_values(history, [f"eval_{key}" for key in self.card_metrics]),
                "test": facts.get("results") or {},
            },
            recipe={key: value for key, value in identity.items() if value is not None}
            | facts.get("recipe", {})
            | self.args.given_settings,
            trainer_name=self._name,
            papers=papers_of(self._paper, [*self.methods, *tuning]),
            methods=[described(method, self.args) for method in self.methods],
            tuning=[described(method, self.args) for method in tuning],
            conversational=getattr(tokenizer, "chat_template", None) is not None,
            curve=draw_curve(history, self.args.output_dir),
            entropy=(entropies[0], entropies[-1]) if entropies else None,
            steps=self.state.global_step,
            links={name: url for name, url in links.items() if url is not None},
            command=command_line(),
            processes=self.accelerator.num_processes,
        )
        card.save(os.path.join(self.args.output_dir, "README.md"))

    def _card_tags(self, tags: str | list[str] | None) -> list[str]:
        """The tags of the trainer, then those given, then those of where it ran; each once."""
        found = [*self._tag_names, *([tags] if isinstance(tags, str) else tags or [])]
        found += ["hf_jobs"] if "JOB_ID" in os.environ else []
        url = get_trackio_space_url()
        if url is not None:  # the Hub embeds the space that this tag names
            found = [*(tag for tag in found if not tag.startswith("trackio:")), f"trackio:{url}"]
        return list(dict.fromkeys(found))
