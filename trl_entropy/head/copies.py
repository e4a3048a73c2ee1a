# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Copies of a module whose attributes hold functions bound to it, such as a replaced `forward`.

`copy.copy`, and `torch.nn.DataParallel` for its replicas, copy the attributes of a module as they are. So such a
function stays bound to the original, and computes with its weights. `copies_rebind` has it bound to the copy.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

from torch import nn


class Remake:
    """Makes a copy, without state, that has given functions bound to itself.

    What `pickle` makes has the methods of the class, and the partial functions.

    Args:
        make: makes the module.
        functions: by attribute, as [`is_bound`] finds them.
    """

    def __init__(self, make: Callable, functions: dict[str, Any]):
        self.make, self.functions = make, functions

    def __call__(self, *arguments: Any) -> nn.Module:
        module = self.make(*arguments)
        vars(module).update({name: bound(function, module) for name, function in self.functions.items()})
        return module

    def __reduce__(self) -> tuple:
        partials = {
            name: functools.partial(value.func, None, *value.args[1:], **value.keywords)
            for name, value in self.functions.items()
            if isinstance(value, functools.partial)
        }
        return (Remake, (self.make, partials)) if partials else (functools.partial, (self.make,))


def copies_rebind(module: nn.Module) -> None:
    """Have copies of `module`, shallow and deep, and its replicas call its bound functions on themselves."""
    for function in (_replicate_for_data_parallel, __reduce_ex__):
        setattr(module, function.__name__, types.MethodType(function, module))


def is_bound(value: Any, module: nn.Module) -> bool:
    """Whether a value is a method of `module`, or a partial function whose first argument is `module`."""
    if isinstance(value, functools.partial):
        return bool(value.args) and value.args[0] is module
    return isinstance(value, types.MethodType) and value.__self__ is module


def bound(value: Any, module: nn.Module) -> Any:
    """A bound function, bound to `module` instead."""
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, module)
    found = functools.partial(value.func, module, *value.args[1:], **value.keywords)
    vars(found).update(vars(value))  # name and signature
    return found


def _replicate_for_data_parallel(module: nn.Module) -> nn.Module:
    replica = type(module)._replicate_for_data_parallel(module)
    functions = {name: bound(value, replica) for name, value in vars(replica).items() if is_bound(value, module)}
    vars(replica).update(functions)
    return replica


def __reduce_ex__(module: nn.Module, protocol: int) -> tuple:  # noqa: N807 (`copy` and `pickle` call it by this name)
    own: Any = type(module)
    make, arguments, state, *rest = own.__reduce_ex__(module, protocol)
    functions = {name: value for name, value in state.items() if is_bound(value, module)}
    others = {name: value for name, value in state.items() if name not in functions}
    return Remake(make, functions), arguments, others, *rest
