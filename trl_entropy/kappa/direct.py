# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds layers whose weight the model's code reads itself, such as `self.dt_proj.weight @ x` in Mamba.

An adapter of PEFT acts when its layer is called. If the weight is read directly, it never acts. The code is read, not
run: a forward on a few tokens would miss fast kernels and experts without tokens, and a model on the meta device
cannot route. A weight that is read in one branch counts as read.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import nn


ABOUT = {"dtype", "device", "shape", "size", "ndim", "dim", "is_cuda", "is_meta", "requires_grad", "data"}
HARMLESS = {"isinstance", "hasattr", "id", "type"}  # calls that do not compute with a weight
SETUP = ("init", "reset_", "tie_")  # parts of the names of functions that set weights up


def directly_read(model: nn.Module) -> set[str]:
    """Names of the modules of `model` whose weight another module's code reads."""
    found = set()
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        kind: Any = type(module)
        found |= {prefix + path for path in read_by(kind)}
    return found


@cache
def read_by(kind: type[nn.Module]) -> frozenset[str]:
    """Paths from a module of this class to the modules whose weight its code reads, such as `dt_proj`."""
    found = set()
    for base in kind.__mro__:
        if base is nn.Module:
            break
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):  # a class without source
            continue
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef) and not any(part in function.name for part in SETUP):
                found |= set(_reads(function))
    return frozenset(found)


def _reads(function: ast.FunctionDef) -> Iterator[str]:
    parents = {child: parent for parent in ast.walk(function) for child in ast.iter_child_nodes(parent)}
    for node in ast.walk(function):
        if not (isinstance(node, ast.Attribute) and node.attr == "weight" and isinstance(node.ctx, ast.Load)):
            continue
        parent = parents[node]
        if isinstance(parent, ast.Attribute) and parent.attr in ABOUT:
            continue
        if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name) and parent.func.id in HARMLESS:
            continue
        path, owner = [], node.value
        while isinstance(owner, ast.Attribute):
            path.append(owner.attr)
            owner = owner.value
        if path and isinstance(owner, ast.Name) and owner.id == "self":
            yield ".".join(reversed(path))
