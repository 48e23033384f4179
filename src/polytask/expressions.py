"""Arithmetic that a recipe may hold: parsed into a small set of operations, never run as Python."""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from polytask.errors import RecipeError, listed, suggestion, unknown

MOST_LETTERS = 2000
"""A longer expression is refused, and with it one that is nested too deeply to parse."""

_QUOTED = re.compile(r"`([^`]+)`")
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: np.divide,
    ast.Pow: np.power,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_FUNCTIONS: dict[str, tuple[Callable[..., Any], int]] = {
    "min": (lambda *values: np.minimum.reduce(np.broadcast_arrays(*values)), 2),
    "max": (lambda *values: np.maximum.reduce(np.broadcast_arrays(*values)), 2),
    "abs": (np.abs, 1),
    "log": (np.log, 1),
    "exp": (np.exp, 1),
    "sqrt": (np.sqrt, 1),
}
ALLOWED = "names, numbers, + - * / **, comparisons, and, or, not, and " + ", ".join(_FUNCTIONS)


class Expression:
    """An expression over named numbers, such as ``0.7 * income.auroc + 0.3 * education.accuracy``.

    It may hold names, numbers, ``+ - * / **``, comparisons, ``and``, ``or``, ``not``, and the functions ``min``,
    ``max``, ``abs``, ``log``, ``exp`` and ``sqrt``. A text in quotes may be compared by ``==`` and ``!=``. A part of
    a name that is no plain word stands in backticks: ```marital status`.accuracy``.

    Args:
        text: The expression.
        known: The names that it may use.
        where: The recipe's key, for errors.
        texts: Those of the names whose values are texts, each with the texts that it can be, or none if they are not
            known. Such a name can only be compared with a text.

    Attributes:
        names: The names that it uses, each once.

    Raises:
        RecipeError: if it does not parse, holds something else, or uses an unknown name.

    Example:
        >>> mean = Expression("(a.f1 + b.f1) / 2", ["a.f1", "b.f1"], "index")
        >>> mean.names, float(mean({"a.f1": 0.5, "b.f1": 1.0}))
        (('a.f1', 'b.f1'), 0.75)
        >>> Expression("a > 0.5 and not b > 2", ["a", "b"], "decision")({"a": np.array([0.9, 0.1]), "b": 1.0})
        array([ True, False])
    """

    def __init__(self, text: str, known: Iterable[str], where: str, texts: Mapping[str, Sequence[str]] | None = None):
        self.text, self.where = text, where
        self._known, self._texts = tuple(known), dict(texts or {})
        self._quoted: dict[str, str] = {}
        self._source = _QUOTED.sub(self._placeholder, text)
        self._tree = self._parsed()
        self._found: dict[str, None] = {}
        self._check(self._tree)
        self.names = tuple(self._found)

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """The value; of one number a name, or of arrays of one shape.

        Args:
            values: For every name of ``names`` its number, text or array of them.
        """
        plain = {name: _numbers(values[name]) for name in self.names}
        with np.errstate(all="ignore"):
            return self._value(self._tree, plain)

    def _placeholder(self, match: re.Match[str]) -> str:
        name = f"_quoted_{len(self._quoted)}"
        self._quoted[name] = match[1]
        return name

    def _error(self, says: str) -> RecipeError:
        return RecipeError(f"{self.where}: '{self.text}': {says}")

    def _parsed(self) -> ast.expr:
        if len(self.text) > MOST_LETTERS:
            raise RecipeError(f"{self.where}: the expression has {len(self.text)} letters; {MOST_LETTERS} is the most.")
        try:
            with warnings.catch_warnings():
                # Python warns of odd code here; what is odd is an error below.
                warnings.simplefilter("ignore", SyntaxWarning)
                return ast.parse(self._source.strip(), mode="eval").body
        except SyntaxError as error:
            at = f" at letter {error.offset}" if error.offset and not self._quoted else ""
            raise self._error(f"this does not parse{at} ({error.msg}). Use {ALLOWED}.") from None
        except (RecursionError, MemoryError, ValueError):
            raise self._error("this is nested too deeply, or holds a letter that cannot be there.") from None

    def _shown(self, node: ast.AST) -> str:
        """The part of the text that a node stands for."""
        part = ast.get_source_segment(self._source.strip(), node) or type(node).__name__
        for name, quoted in self._quoted.items():
            part = part.replace(name, f"`{quoted}`")
        return part

    def _check(self, node: ast.expr, text_allowed: bool = False) -> None:
        """Refuse what is not on the list; collect the names."""
        match node:
            case ast.Constant(value=bool() | None) | ast.Constant(value=complex() | bytes()):
                raise self._error(f"'{self._shown(node)}' cannot be used. Use {ALLOWED}.")
            case ast.Constant(value=str()):
                if not text_allowed:
                    raise self._error(f"the text {self._shown(node)} can only be compared with == or !=.")
            case ast.Constant(value=int() | float()):
                pass
            case ast.Name() | ast.Attribute():
                self._check_name(node, text_allowed)
            case ast.BinOp(op=op) if type(op) in _BINARY:
                self._check(node.left)
                self._check(node.right)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not()):
                self._check(node.operand)
            case ast.BoolOp():
                for part in node.values:
                    self._check(part)
            case ast.Compare() if all(type(op) in _COMPARISONS for op in node.ops):
                self._check_comparison(node)
            case ast.Call():
                self._check_call(node)
            case _:
                raise self._error(f"'{self._shown(node)}' cannot be used. Use {ALLOWED}.")

    def _check_name(self, node: ast.expr, text_allowed: bool) -> None:
        name = self._name(node)
        if name not in self._known:
            raise self._error(f"unknown name '{name}'. Known: {listed(self._known)}.{suggestion(name, self._known)}")
        if name in self._texts and not text_allowed:
            raise self._error(f"'{name}' is a text; compare it with == or != and a text in quotes.")
        self._found[name] = None

    def _check_comparison(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        equality = all(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops)
        for side in sides:
            self._check(side, text_allowed=equality)
        kinds = {self._is_text(side) for side in sides}
        if len(kinds) > 1:
            raise self._error(f"'{self._shown(node)}' compares a text with a number.")
        possible = [text for side in sides for text in self._texts.get(self._name_or_empty(side), ())]
        for side in sides:
            if possible and isinstance(side, ast.Constant) and side.value not in possible:
                raise self._error(unknown("class", str(side.value), possible))

    def _is_text(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Constant):
            return isinstance(node.value, str)
        return self._name_or_empty(node) in self._texts

    def _name_or_empty(self, node: ast.expr) -> str:
        return self._name(node) if isinstance(node, ast.Name | ast.Attribute) else ""

    def _check_call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in _FUNCTIONS:
            shown = self._shown(node.func)
            raise self._error(
                f"unknown function '{shown}'. Known: {', '.join(_FUNCTIONS)}.{suggestion(shown, _FUNCTIONS)}"
            )
        least = _FUNCTIONS[name][1]
        if node.keywords or len(node.args) < least or (least == 1 and len(node.args) > 1):
            wanted = "one number" if least == 1 else "two numbers or more"
            raise self._error(f"{name} takes {wanted}, found '{self._shown(node)}'.")
        for part in node.args:
            self._check(part)

    def _name(self, node: ast.expr) -> str:
        """The dotted name of a chain of attributes."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            raise self._error(f"'{self._shown(node)}' has no parts to name.")
        parts.append(node.id)
        return ".".join(self._quoted.get(part, part) for part in reversed(parts))

    def _value(self, node: ast.expr, values: Mapping[str, Any]) -> Any:
        match node:
            case ast.Constant():
                # As a float, so that a power of whole numbers overflows to infinity and does not fill the memory.
                return node.value if isinstance(node.value, str) else np.float64(node.value)  # type: ignore[arg-type]
            case ast.BinOp():
                left, right = (_number(self._value(side, values)) for side in (node.left, node.right))
                return _BINARY[type(node.op)](left, right)
            case ast.UnaryOp():
                inner = self._value(node.operand, values)
                if isinstance(node.op, ast.Not):
                    return np.logical_not(inner)
                return -_number(inner) if isinstance(node.op, ast.USub) else inner
            case ast.BoolOp():
                join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
                result = self._value(node.values[0], values)
                for part in node.values[1:]:
                    result = join(result, self._value(part, values))
                return result
            case ast.Compare():
                return self._compared(node, values)
            case ast.Call():
                assert isinstance(node.func, ast.Name)
                return _FUNCTIONS[node.func.id][0](*(_number(self._value(part, values)) for part in node.args))
            case _:
                return values[self._name(node)]

    def _compared(self, node: ast.Compare, values: Mapping[str, Any]) -> Any:
        left, result = self._value(node.left, values), None
        for op, side in zip(node.ops, node.comparators, strict=True):
            right = self._value(side, values)
            holds = _COMPARISONS[type(op)](left, right)
            result = holds if result is None else np.logical_and(result, holds)
            left = right
        return result


def _numbers(value: Any) -> Any:
    """Numbers as float64; texts as they are."""
    array = np.asarray(value)
    return array if array.dtype.kind in "OUS" else np.float64(value) if array.ndim == 0 else array.astype(np.float64)


def _number(value: Any) -> Any:
    """A comparison counts as 0 or 1, as in Python; NumPy adds it as a truth value."""
    return np.asarray(value, dtype=np.float64) if np.asarray(value).dtype == bool else value
