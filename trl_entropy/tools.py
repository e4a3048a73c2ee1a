# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A tool for agents that needs nothing else, for recipes and first runs: `tools: [trl_entropy.tools.calculator]`."""

import ast
import math
import operator
from collections.abc import Callable


OPERATIONS: dict[type, Callable] = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv},
    **{ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow},
    **{ast.UAdd: operator.pos, ast.USub: operator.neg},
}
LONGEST, LARGEST = 200, 1000  # characters of an expression, bits of a power


def calculator(expression: str) -> str:
    """
    Computes an arithmetic expression.

    Args:
        expression: Numbers, + - * / // % ** and parentheses, such as "(3 + 4) * 2 ** 5".

    Returns:
        The value.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"the expression must have at most {LONGEST} characters, got {len(expression)}")
    return str(value_of(ast.parse(expression.strip(), mode="eval").body))


def value_of(node: ast.expr) -> int | float:
    """The value of a parsed expression. Raises `ValueError` for anything but arithmetic with numbers."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return node.value
    operation = OPERATIONS.get(type(getattr(node, "op", None)))
    if isinstance(node, ast.UnaryOp) and operation:
        return operation(value_of(node.operand))
    if isinstance(node, ast.BinOp) and operation:
        left, right = value_of(node.left), value_of(node.right)
        if operation is operator.pow and abs(right) * math.log2(max(abs(left), 2)) > LARGEST:
            raise ValueError(f"a power must have at most {LARGEST} bits, got {left} ** {right}")
        return operation(left, right)
    raise ValueError(f"only arithmetic with numbers can be computed, got {ast.unparse(node)!r}")
