# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Facts for model cards from the Hub: license and base model of the model that was trained."""

import os
from functools import lru_cache

from huggingface_hub import CardData, ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


LICENSE_KEYS = ("license", "license_name", "license_link")


def hub_id(name: str | None) -> str | None:
    """`name` if it can be a repository on the Hub; `None` for an existing path, an invalid name, "" and `None`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if not name or os.path.exists(name) else name


@lru_cache
def metadata_of(model: str) -> CardData:
    """The metadata of a model card on the Hub; empty if the card or the Hub cannot be read."""
    try:
        return ModelCard.load(model, ignore_metadata_errors=True).data
    except (OSError, ValueError):
        return CardData()


def license_of(model: str) -> dict[str, str]:
    """The license keys of a model card on the Hub."""
    data = metadata_of(model)
    return {key: data[key] for key in LICENSE_KEYS if data.get(key)}


def base_of(model: str) -> str | None:
    """The base model that a model card on the Hub names; `None` if there are several, or it is the model itself."""
    found = metadata_of(model).get("base_model")
    found = found[0] if isinstance(found, list) and len(found) == 1 else found
    return hub_id(found) if isinstance(found, str) and found != model else None
