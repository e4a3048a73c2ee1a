# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds the recipes and accelerate configs that come with the package by their names."""

from pathlib import Path

from ..settings import did_you_mean


PACKAGE = Path(__file__).parents[1]
# A wheel has the recipes inside the package. In a checkout and an editable install they lie beside it.
RECIPES = next((folder for folder in (PACKAGE / "recipes", PACKAGE.parent / "recipes") if folder.is_dir()), None)


def names_in(folder: str = "") -> dict[str, Path]:
    """The YAML files of the recipes' folder, or of a folder in it, by their names without `.yaml`."""
    return {} if RECIPES is None else {path.stem: path for path in sorted((RECIPES / folder).glob("*.yaml"))}


def is_file(path: Path) -> bool:
    """Whether a file exists. A pipe, such as `/dev/stdin`, counts as one."""
    return path.exists() and not path.is_dir()


def recipe_path(given: str | Path) -> Path:
    """The file of a recipe.

    Args:
        given: path of a file, which wins if it exists, or the name of a recipe, with or without `.yaml`.

    Raises:
        `FileNotFoundError`: neither a file nor a recipe.
    """
    path, known = Path(given), names_in()
    name = path.name.removesuffix(".yaml")
    if is_file(path):
        return path
    if path == Path(path.name) and name in known:
        return known[name]
    raise FileNotFoundError(
        f"config={str(given)!r} does not exist: No such file or directory, and no recipe has this name."
        f"{did_you_mean(name, known, ignore_case=False)} Recipes: {', '.join(known)}."
    )


def accelerate_config_path(given: str) -> str:
    """The file of one of our accelerate configs. Any other name and a path that exists are returned unchanged.

    TRL looks other names up among its own configs.
    """
    ours = names_in("accelerate")
    name = given.removesuffix(".yaml")
    return str(ours[name]) if name in ours and not is_file(Path(given)) else given
