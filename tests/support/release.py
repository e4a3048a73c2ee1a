# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks what would be published: `python tests/support/release.py SOURCE DIST`.

The sdist has every file of the repository and nothing else. The wheel has the package, its recipes and nothing else.
Its version is that of the citation and the changelog.
"""

import re
import sys
import tarfile
import zipfile
from pathlib import Path


MADE = ("PKG-INFO", "setup.cfg", "trl_entropy.egg-info/")  # by setuptools
LARGEST = 3 * 2**20  # bytes of the wheel and of the sdist: pictures and recipes are what grows


def names_of_sdist(path: Path) -> set[str]:
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    return {name for name in names if not name.startswith(MADE)}


def names_of_wheel(path: Path) -> set[str]:
    names = set(zipfile.ZipFile(path).namelist())
    return {name for name in names if ".dist-info/" not in name}


def expected_of_wheel(files: set[str]) -> set[str]:
    """The files of the package, and the recipes that `--config` finds by name."""
    recipes = {
        name for name in files if re.fullmatch(r"recipes/[^/]+\.(py|yaml)|recipes/accelerate/[^/]+\.yaml", name)
    }
    return {name for name in files if name.startswith("trl_entropy/")} | {f"trl_entropy/{name}" for name in recipes}


def differences(what: str, found: set[str], expected: set[str]) -> list[str]:
    problems = [f"{what} lacks {name}" for name in sorted(expected - found)]
    return problems + [f"{what} must not have {name}" for name in sorted(found - expected)]


def version_problems(source: Path, version: str) -> list[str]:
    """The files that state another version than the package."""
    stated = {
        "pyproject.toml": rf'^version = "{re.escape(version)}"$',
        "trl_entropy/_version.py": rf'^__version__ = "{re.escape(version)}"$',
        "CITATION.cff": rf"^version: {re.escape(version)}$",
        "CHANGELOG.md": rf"^## \[{re.escape(version)}\] - (Unreleased|\d{{4}}-\d\d-\d\d)$",
    }
    found = {name: (source / name).read_text() for name in stated}
    return [
        f"{name} does not state {version}" for name, text in found.items() if not re.search(stated[name], text, re.M)
    ]


def check(source: Path, dist: Path) -> list[str]:
    """What is wrong with the files in `dist`, made from `source`."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    made = [source / "build", *source.glob("*.egg-info")]
    paths = (path for path in source.rglob("*") if path.is_file() and not {*path.parents} & {*made})
    files = {path.relative_to(source).as_posix() for path in paths}
    problems = differences("sdist", names_of_sdist(sdist), files)
    problems += differences("wheel", names_of_wheel(wheel), expected_of_wheel(files))
    problems += version_problems(source, wheel.name.split("-")[1])
    sizes = {path.name: path.stat().st_size for path in (sdist, wheel)}
    problems += [f"{name} has {size} bytes, more than {LARGEST}" for name, size in sizes.items() if size > LARGEST]
    print(*(f"{name}: {size / 2**10:.0f} KiB" for name, size in sizes.items()), sep="\n")  # noqa: T201
    return problems


def main() -> int:
    problems = check(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
    print(*problems, sep="\n", end="\n" if problems else "")  # noqa: T201
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
