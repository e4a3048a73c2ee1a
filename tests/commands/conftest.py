# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Fixture of the tests of commands."""

import pytest
from support.chat import save_chat_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a tiny model that takes conversations."""
    return save_chat_model(tmp_path_factory.mktemp("tiny"))
