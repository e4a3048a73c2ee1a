# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The list of packages. Everything else is in `pyproject.toml`.

`trl_entropy.recipes` is the top folder `recipes`. `pyproject.toml` cannot add it to the packages that setuptools
finds.
"""

from setuptools import find_packages, setup


setup(packages=[*find_packages(include=["trl_entropy", "trl_entropy.*"]), "trl_entropy.recipes"])
