# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Methods of other packages: registered in Python or found through entry points."""

import inspect
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ..paper import Paper
from .base import Method
from .rebasing import family, set_bases


GROUP = "trl_entropy.methods"  # of entry points
PREFIXES = ("tip", "kappa")  # of settings that belong to no method in `methods`
# Groups of metrics, and parts of a state.
RESERVED = (*PREFIXES, "entropy", "entropy_bonus", "entropy_forecast", "entropy_keep")


class Registry:
    """The methods by name, and the dataclass that inherits the settings of all of them.

    A new method's settings are added to that class and its subclasses in place, because the trainer, parsers and
    pickles already hold references to these classes.

    Args:
        methods: the methods by name; `register` adds to it.
        settings: the dataclass. Its bases include the config of each method that has settings.
        changed: called after a method was added or removed.
    """

    def __init__(self, methods: dict[str, type[Method]], settings: type, changed: Callable[[], None]):
        self.methods, self.settings, self.changed = methods, settings, changed
        self._own = tuple(methods)
        self._entries: dict[str, EntryPoint] = {}  # by method name
        self._left_out: set[tuple[str, EntryPoint]] = set()

    def register(self, method: type[Method], config: type | None = None) -> None:
        """
        Adds a method: from then on `methods` may list it, and its settings are fields of `EntropyGRPOConfig`.

        The command line finds methods by entry points of the group `trl_entropy.methods`. Registering a class twice
        does nothing.

        Args:
            method (`type[Method]`):
                The method.
            config (`type`, *optional*):
                Dataclass of its settings. Defaults to `method.config`.

        Raises:
            `TypeError`: `method` is not a subclass of `Method`, or `config` is not a dataclass.
            `ValueError`: the name is taken or begins a field of TRL or ours, or a declaration is missing or malformed.
        """
        if not (isinstance(method, type) and issubclass(method, Method)):
            raise TypeError(f"`method` must be a subclass of `trl_entropy.methods.Method`, got {method!r}.")
        check_declaration(method)
        if self.methods.get(method.name) is method:
            return
        config = method.config if config is None else config
        check_config(method, config)
        refuse_name(method, self.methods)
        for kind in family(self.settings):
            refuse_taken(method, config, kind)
        method.config = config
        if fields(config):
            set_bases(self.settings, (*self.settings.__bases__, config))
        self.methods[method.name] = method
        self.changed()

    def unregister(self, name: str) -> None:
        """Removes a registered method. Raises `KeyError` for an unknown name."""
        config = self.methods.pop(name).config
        self._entries.pop(name, None)
        set_bases(self.settings, tuple(base for base in self.settings.__bases__ if base is not config))
        self.changed()

    def load_entry_points(self, again: bool = False) -> None:
        """Registers the methods of installed packages. A method that cannot be registered is skipped with a warning.

        If the import of a method's module led here, the module may not have defined its method yet. The second call
        (`again`), made before the trainer's config is defined, registers it.
        """
        for entry in sorted(entry_points(group=GROUP), key=lambda entry: (package_of(entry), entry.name)):
            if (package_of(entry), entry) in self._left_out:
                continue
            try:
                method = entry.load()
                self.register(method)
            except Exception as error:
                if again or not is_being_imported(entry.module):
                    self._leave_out(entry, error)
            else:
                self._entries[method.name] = entry

    def check_fields(self, kind: type) -> None:
        """Checks that no registered method has a field that `kind`, a new subclass of the settings, also has.

        Raises:
            `ValueError`: a method registered in Python has such a field. A method from an entry point is skipped with
                a warning instead.
        """
        for name in [name for name in self.methods if name not in self._own]:
            method = self.methods[name]
            try:
                refuse_taken(method, method.config, kind)
            except ValueError as error:
                if name not in self._entries:
                    raise
                self._leave_out(self._entries[name], error)
                self.unregister(name)

    def _leave_out(self, entry: EntryPoint, error: Exception) -> None:
        self._left_out.add((package_of(entry), entry))
        reason = str(error) if isinstance(error, (ValueError, TypeError)) else f"{type(error).__name__}: {error}"
        warnings.warn(
            f"Method {entry.name!r} of the package {package_of(entry)!r} is left out. {reason}", stacklevel=3
        )


# Checks


def title(kind: type) -> str:
    return f"`{kind.__module__}.{kind.__qualname__}`"


def check_declaration(method: type[Method]) -> None:
    """Raises `ValueError` for a method without a usable name, summary or paper."""
    name, summary = getattr(method, "name", None), getattr(method, "summary", None)
    if not (isinstance(name, str) and re.fullmatch("[a-z][a-z0-9_]*", name)):
        raise ValueError(f"`name` of {title(method)} must be lower-case letters, digits and _, got {name!r}.")
    if not (isinstance(summary, str) and summary.strip() and "\n" not in summary):
        raise ValueError(f"`summary` of {title(method)} must be one line of text, got {summary!r}.")
    if not isinstance(paper := getattr(method, "paper", None), Paper):
        raise ValueError(f"`paper` of {title(method)} must be a `trl_entropy.methods.Paper`, got {paper!r}.")


def check_config(method: type[Method], config: Any) -> None:
    """Raises `TypeError` if `config` is not a dataclass, `ValueError` for a field without prefix, default or help."""
    settings = getattr(config, "__dataclass_params__", None)
    if not (isinstance(config, type) and is_dataclass(config)) or getattr(settings, "frozen", True):
        raise TypeError(f"`config` of {title(method)} must be a dataclass that is not frozen, got {config!r}.")
    if method.knob is not None and method.knob.field not in [item.name for item in fields(config)]:
        raise ValueError(f"`knob` of {title(method)} must name a field of {title(config)}, got {method.knob.field!r}.")
    for item in fields(config):
        field, prefix = f"Field `{item.name}` of {title(config)}", f"{method.name}_"
        if not item.name.startswith(prefix):
            raise ValueError(f"{field} must begin with {prefix!r}, the name of its method.")
        if item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{field} must have a default.")
        text = item.metadata.get("help")
        if not (isinstance(text, str) and text.strip()) or "%" in text:  # `argparse` formats it with %
            accepted = "a help text without '%' as `metadata={'help': ...}`"
            raise ValueError(f"{field} must have {accepted}, got {text!r}.")


def refuse_name(method: type[Method], methods: dict[str, type[Method]]) -> None:
    """Raises `ValueError` for a name that is taken, or that starts with the name of another method."""
    what = f"`name` of {title(method)} must"
    if method.name in methods:
        raise ValueError(f"{what} be free, got {method.name!r}, the name of {title(methods[method.name])}.")
    if method.name in RESERVED:
        raise ValueError(f"{what} be free, got {method.name!r}, which is reserved.")
    for other in (*methods, *PREFIXES):
        if method.name.startswith(f"{other}_"):
            raise ValueError(
                f"{what} not begin with the name of another method, got {method.name!r}: {other!r} exists."
            )


def refuse_taken(method: type[Method], config: type, kind: type) -> None:
    """Raises `ValueError` if `kind` has a field, of TRL or of ours, that starts with the method's prefix."""
    for base in kind.__mro__:
        for name in (*vars(base), *inspect.get_annotations(base)):
            if name.startswith(f"{method.name}_") and base not in config.__mro__:
                raise ValueError(
                    f"`name` of {title(method)} must be one with which no other field begins, got {method.name!r}: "
                    f"{title(base)} has `{name}`."
                )


def package_of(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "unknown"


def is_being_imported(module: str) -> bool:
    """Whether the import of a module has started but not finished, so that names may be missing from it."""
    spec = getattr(sys.modules.get(module), "__spec__", None)
    return getattr(spec, "_initializing", False)
