# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tools for agents, as functions that TRL's trainer takes."""

import ast
import operator
from collections.abc import Callable
from typing import Any


OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
LONGEST = 200  # characters of an expression


def calculator(expression: str) -> str:
    """Works out an arithmetic expression.

    Args:
        expression: Numbers, parentheses and the operators + - * / // %, such as "(3 + 4) * 12".

    Returns:
        The result, or what is wrong with the expression.
    """
    try:
        if len(expression) > LONGEST:
            raise ValueError(f"an expression has at most {LONGEST} characters")
        value = value_of(ast.parse(expression.strip(), mode="eval").body)
        return str(value) if isinstance(value, int) else f"{value:.12g}"
    except (ValueError, TypeError, SyntaxError, ArithmeticError, RecursionError) as error:
        return f"Error: {error}"


def value_of(node: ast.AST) -> float:
    """The value of a node of an expression. Raises `ValueError` for anything but arithmetic."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return node.value
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](value_of(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](value_of(node.left), value_of(node.right))
    raise ValueError("only numbers, parentheses and + - * / // % are known")
