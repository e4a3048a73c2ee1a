# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pages of the site that are not in `docs/`, and links that work on GitHub and on the site.

Pages of the repository link to files in it, and README links to GitHub, so that PyPI can show it. On the site, links
to pages lead to the site's own, and links to other files lead to GitHub. A link to a file that does not exist is a
warning, which ends a strict build.
"""

import ast
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from docstrings import help_of  # beside this file
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files


logger = get_plugin_logger("pages")

ROOT = Path(__file__).parents[1]
GITHUB = "https://github.com/trl-entropy/trl-entropy"
# How pages link to files of the repository
ADDRESSES = re.compile(
    rf"(?:{GITHUB}/(?:blob|tree)|https://raw\.githubusercontent\.com/trl-entropy/trl-entropy)/main/"
)
# Files of the repository that are pages of the site; so are all of `docs/*.md`
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}

# Pages of the reference: title, first sentence, and what to describe
REFERENCE = {
    "grpo": (
        "GRPO",
        "GRPO with entropy methods. Fields and arguments that are not listed are TRL's.",
        ["trl_entropy.EntropyGRPOConfig", "trl_entropy.EntropyGRPOTrainer"],
    ),
    "distillation": (
        "Distillation",
        "Distillation on the tokens that TIP selects. Fields and arguments that are not listed are TRL's.",
        [
            f"trl_entropy.Entropy{name}{kind}"
            for name in ("Distillation", "GKD", "SDFT", "SDPO")
            for kind in ("Config", "Trainer")
        ],
    ),
    "kappa": (
        "KappaTune",
        "For any trainer of transformers or TRL.",
        ["trl_entropy.KappaTuneCallback", "trl_entropy.kappa_peft_config", "trl_entropy.kappa.config.KappaConfig"],
    ),
    "callbacks": (
        "Callbacks",
        "For any trainer of transformers or TRL.",
        ["trl_entropy.MonitorCallback", "trl_entropy.HallucinationCallback", "trl_entropy.EntropyLawCallback"],
    ),
    "curves": ("Curves", "Schedules that `trl-entropy curves refine` writes.", ["trl_entropy.refined_schedule"]),
    "methods": (
        "Methods",
        "What a method is made of, and how a package adds one. See [Write a method](../write_a_method.md).",
        [
            "trl_entropy.Method",
            "trl_entropy.methods.registry.Registry.register",
            *("trl_entropy.methods.Paper", "trl_entropy.methods.Knob", "trl_entropy.signs.EntropyBand"),
        ],
    ),
    "tensors": ("Tensors of methods", "What the hooks of a method get.", ["trl_entropy.tokens"]),
    "functional": ("Functions", "Functions of tensors, which know nothing of TRL.", ["trl_entropy.functional"]),
    "rewards": (
        "Rewards and tools",
        "By name in recipes.",
        ["trl_entropy.rewards", "trl_entropy.tools", "trl_entropy.gym"],
    ),
    "experimental": (
        "Experimental",
        "May change or go in any version. See [Experimental](../experimental.md).",
        [
            "trl_entropy.experimental.sigma_reparam.apply_sigma_reparam",
            "trl_entropy.experimental.sigma_reparam.remove_sigma_reparam",
            "trl_entropy.experimental.attention_penalty.AttentionPenalty",
            "trl_entropy.experimental.ldr.ldr_kl_loss",
            "trl_entropy.experimental.warning.ExperimentalWarning",
        ],
    ),
}
# Public names that pages describe under another name or not at all
ELSEWHERE = {"METHODS": "reference/fields.md", "register": "trl_entropy.methods.registry.Registry.register"}


def public_names() -> set[str]:
    """The names that `import trl_entropy` gives, read without importing it."""
    tree = ast.parse((ROOT / "trl_entropy" / "__init__.py").read_text())
    (table,) = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_PUBLIC"
    )
    return set(ast.literal_eval(table))


def described() -> set[str]:
    return {name for _, _, names in REFERENCE.values() for name in names}


def options_of(name: str) -> str:
    """How to describe a name: a config by its docstring, since its signature has the fields of all methods."""
    options = ["show_signature: false", "members: false"] if name.endswith("Config") else []
    if (ROOT / f"{name.replace('.', '/')}.py").exists():  # a module, whose name is the page's title
        options = ["show_root_heading: false", "heading_level: 2"]
    return "".join(f"\n      {option}" for option in options)


def reference(title: str, text: str, names: list[str]) -> str:
    parts = [f"::: {name}" + (f"\n    options:{options}" if (options := options_of(name)) else "") for name in names]
    return "\n\n".join([f"# {title}", text, *parts]) + "\n"


def escaped(text: str) -> str:
    """Text for a cell of a table. Code stays as it is."""
    return re.sub(r"(`[^`]*`)|<", lambda found: found[1] or "&lt;", text).replace("|", "\\|")


def fields_of_methods() -> str:
    """What `trl-entropy methods NAME` shows of every method."""
    stored = json.loads((ROOT / "trl_entropy" / "commands" / "methods.json").read_text())["methods"]
    lines = ["# Fields of methods", "", "`trl-entropy methods NAME` shows the same in a terminal.", ""]
    for name, method in stored.items():
        paper = re.sub(r"(https://\S+)$", r"<\1>", method["paper"])
        lines += [f"## `{name}`", "", f"{method['summary'][0].upper()}{method['summary'][1:]}. {paper}", ""]
        lines += ["| field | type and default | meaning |", "| --- | --- | --- |"]
        lines += [
            f"| `{field}` | `{method['fields'][field]['default']}` | {escaped(text)} |"
            for field, text in help_of(method).items()
        ]
        lines.append("")
    return "\n".join(lines)


def on_files(files: Files, config: Any) -> Files:
    """Adds pages from elsewhere in the repository, the reference, and the pictures that pages show."""
    made = {page: (ROOT / source).read_text() for source, page in PAGES.items()}
    made |= {f"reference/{name}.md": reference(*about) for name, about in REFERENCE.items()}
    made["reference/fields.md"] = fields_of_methods()
    made["wide_names.css"] = ".md-typeset td:first-child code { white-space: nowrap; }\n"
    if left_out := sorted(public_names() - ELSEWHERE.keys() - {name.rsplit(".", 1)[1] for name in described()}):
        logger.warning(f"No page of the reference describes {', '.join(left_out)}.")
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    for folder in ("recipes", "model_cards"):
        for path in sorted((ROOT / folder).rglob("*.png")):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def page_of(path: str) -> str | None:
    """The page or picture of the site that a file of the repository became, if it did."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if path.endswith(".png") else None


def moved(target: str, source: str, page: str) -> str:
    """Where a link leads on the site.

    Args:
        target: where it leads in the repository: an address, or a path relative to its file.
        source: the file that has the link, in the repository.
        page: the page of the site that the file became.
    """
    path, mark, anchor = target.partition("#")
    if found := ADDRESSES.match(path):
        path = path[found.end() :]
    elif not path or re.match(r"\w+:", path):
        return target
    else:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if not (ROOT / path).exists():
        logger.warning(f"{source} links to {target}, but the repository has no {path}.")
    own = page_of(path)
    if own is not None:
        return posixpath.relpath(own, posixpath.dirname(page) or ".") + mark + anchor
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"{GITHUB}/{kind}/main/{path.rstrip('/')}{mark}{anchor}"


LINK = re.compile(r"(\]\()([^)\s]+)(\))")
FENCE = re.compile(r"^\s*(```|~~~)")
ITEM = re.compile(r"^(\* |- |\d+\. )")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """The text with the site's links, a blank line before each list, and without comments, as GitHub shows it."""
    page_path = page.file.src_uri
    if page_path.startswith("reference/"):
        return markdown
    source = next((name for name, own in PAGES.items() if own == page_path), f"docs/{page_path}")
    lines: list[str] = []
    fenced = False
    for line in markdown.splitlines():
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            if line.startswith("<!-- ") and line.endswith(" -->"):
                line = ""
            before = lines[-1] if lines else ""
            if ITEM.match(line) and before.strip() and not ITEM.match(before) and not before.startswith(" "):
                lines.append("")
            line = LINK.sub(lambda found: found[1] + moved(found[2], source, page_path) + found[3], line)
        lines.append(line)
    return "\n".join(lines) + "\n"


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Cross references of TRL's style, such as [`~trl.GRPOConfig`], as their names."""
    return re.sub(r"\[<code>~?(?:[\w.]+\.)?(\w+)</code>\]", r"<code>\1</code>", html)
