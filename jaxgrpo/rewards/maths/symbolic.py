r"""Compares formulas by math-verify, behind guards that admit only what it computes in a moment.

    same_expression(r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}")   -> True
    same_expression("9^{9^{9}}", "1")                               -> False, at once

math-verify parses LaTeX with a grammar, into a SymPy tree that it does not yet evaluate: no `eval`,
no `exec`. Its timeouts are alarms, which work in the main thread only: they are off. Instead, a
formula is refused, and equals nothing,

1. as text: if it is long, deeply nested, a tower of powers, has words, or commands other than
   `_COMMANDS`, such as sums;
2. as a tree, before any of it is evaluated: if a value in it could have more than `MAX_BITS` bits
   (`9^{9^9}`, `(9!)!`);
3. as numbers: two formulas that differ at a random point are different, and so are two equations
   that are not multiples of each other there. Only the rest is worth simplifying or solving.

Functions without a meaning, such as f(x), and derivatives are variables here.

What is slow all the same is ended by the pool's deadline.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from types import ModuleType
from typing import TYPE_CHECKING

import regex as re

if TYPE_CHECKING:  # SymPy takes half a second to import: see _math_verify
    import mpmath
    import sympy

MAX_FORMULA_LENGTH = 300
"""Characters."""
MAX_NESTING = 8
"""Brackets in brackets."""
MAX_INTEGER_DIGITS = 50
MAX_BITS = 30_000
"""Bits of the largest number that evaluating a formula could make."""

_COMMAND_NAMES = """frac sqrt pi cdot times div le leq ge geq lt gt binom sin cos tan cot sec csc
    arcsin arccos arctan sinh cosh tanh log ln exp circ lfloor rfloor lceil rceil begin end pmatrix
    bmatrix vmatrix matrix dot ddot prime hbar odot alpha beta gamma delta epsilon varepsilon zeta
    eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi varphi chi psi omega
    Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"""
_COMMANDS = frozenset(_COMMAND_NAMES.split())
_FUNCTION_NAMES = (
    "sqrt sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log exp"
)
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_LETTERS = re.compile(r"[A-Za-z]{3,}")
# Other scripts, signs that formulas do not have, a number with a base ("52_8"), "x^^2"
_FORBIDDEN = re.compile(r"[^\x20-\x7e]|[\"'`@#$%?:;~]|\d\)?\s*_|\^\s*\^")
# A power of a power of a number, "9^9^9", "9^{(9+1)^{9}}"; a factorial of a factorial, "9!!"
_TOWER = re.compile(r"\d[)}\s]*\^(?:\s*\d+|[\s({]+[^{}()]*\d[)}\s]*)\s*\^|!\s*\)?\s*!")
# Many digits in a row; a binomial of large plain numbers, which the parser would evaluate at once
_LARGE_NUMBER = re.compile(rf"\d{{{MAX_INTEGER_DIGITS + 1},}}|\\binom.*\d{{4}}")


def same_expression(answer: str, gold: str) -> bool:
    """Returns whether two formulas are equal wherever they are defined.

    They are normalized texts of expressions, equations or matrices.
    """
    answer = _to_parser_notation(answer)
    gold = _to_parser_notation(gold)
    if not (is_safe(gold) and is_safe(answer)):
        return False
    answer_tree = _parse(answer)
    gold_tree = _parse(gold)
    if answer_tree is None or gold_tree is None:
        return False
    try:
        if _differ_in_value(answer_tree, gold_tree):
            return False
        return _math_verify().verify(
            gold_tree, answer_tree, timeout_seconds=None, float_rounding=12
        )
    except (
        ArithmeticError,
        AttributeError,
        TypeError,
        ValueError,
        NotImplementedError,
        RecursionError,
    ):
        return False  # SymPy's ways to say that it has no number for a formula


def is_formula(text: str) -> bool:
    """Returns whether a normalized text would be read as a formula, by its looks alone."""
    return is_safe(_to_parser_notation(text))


def is_safe(text: str) -> bool:
    """Returns whether a formula may be given to the parser: point 1 above."""
    if not 0 < len(text) <= MAX_FORMULA_LENGTH:
        return False
    if _FORBIDDEN.search(text) or _LARGE_NUMBER.search(text) or _TOWER.search(text):
        return False
    if not _COMMANDS.issuperset(_COMMAND.findall(text)) or _nesting(text) > MAX_NESTING:
        return False
    # "2abc" is a product, but "seat" and "no" are words: the parser would take them for products,
    # which equal "east" and "on". Names of environments and long subscripts are not meant here.
    without_names = re.sub(r"\\(?:begin|end)\{\w+\}|_\{\w+\}", " ", text)
    letters = _LETTERS.findall(_COMMAND.sub(" ", without_names))
    has_word = any(len(run) > 3 for run in letters if run not in _FUNCTIONS)
    is_one_word = len(text) > 1 and text.isalpha()
    return not has_word and not is_one_word


def _nesting(text: str) -> int:
    depth = 0
    deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        deepest = max(deepest, depth)
    return deepest


# "np." of "np.sin(x)"
_NUMPY_PREFIX = re.compile(r"\b(?:np|math)\.(?=[a-z])")
# "e33" of "4.5e33"
_SCIENTIFIC = re.compile(r"(?<=\d)[eE]([-+]?\d+)")
# "\mathrm{ d }": the group is its content without spaces around
_FONT = re.compile(
    r"\\(?:text|mathrm|mathbf|mathit|operatorname|mathbb|boldsymbol)\s*\{\s*([^{}]*?)\s*\}"
)
# "^{\prime}", "'"
_PRIME = re.compile(r"\^\s*\{?\\prime\}?|'(?!')")
# The point of "3."
_TRAILING_POINT = re.compile(r"(?<=\d)\.(?!\d)")


def _to_parser_notation(text: str) -> str:
    """Returns a formula without notations that the parser does not know, or misreads."""
    text = _NUMPY_PREFIX.sub(r"\\", text)
    text = _FONT.sub(r"\1", text).replace("**", "^")
    text = _SCIENTIFIC.sub(r"\\times 10^{\1}", text)
    text = re.sub(r"\s+\^", "^", text)
    # The E of "E_1" is an energy, which the parser would take for Euler's number.
    text = re.sub(r"(?<![A-Za-z\\])E_", r"\\Xi_", text)
    text = _PRIME.sub("_{prime}", text)
    return _TRAILING_POINT.sub("", text).strip()


def warm_up() -> None:
    """Imports math-verify and builds the tables of its grammar.

    That takes a second, which a worker should not have to pay out of a completion's deadline.
    """
    same_expression(r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}")
    same_expression("x^2+2x+1", "(x+1)^2")


@cache
def _math_verify() -> ModuleType:
    """Returns math-verify, imported when first needed.

    Its import takes half a second, which neither a trainer nor plain numbers should cost.
    """
    import logging

    import math_verify

    # It would warn that its alarms are off, as they should be.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify


@cache
def _latex_parser() -> Callable[[str], object]:
    """Returns a function from LaTeX to its tree, not yet evaluated; imported when first needed."""
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    def parse_latex(text: str) -> object:
        """Returns the tree of a formula; fails in many ways where it has none."""
        # "units" would take the m of 6m for metres.
        normalization = NormalizationConfig(
            basic_latex=True,
            units=False,
            malformed_operators=True,
            nits=True,
            boxed="none",
        )
        normalized = normalize_latex(text, config=normalization)
        conversion = ConversionConfig(lowercase_symbols=False)
        return latex2sympy(
            normalized, normalization_config=None, conversion_config=conversion
        )

    return parse_latex


@lru_cache(maxsize=256)  # all completions of a group have the same gold
def _parse(text: str) -> "sympy.Basic | None":
    """Returns the SymPy tree of a safe formula; None if it has none, or one that is too large.

    Decimals are exact fractions in it, and i is the imaginary unit.
    """
    parse_latex = (
        _latex_parser()
    )  # outside of `try`: a library that is not there is an error
    try:
        tree = parse_latex(text)
        return None if bit_bound(tree) > MAX_BITS else _with_exact_leaves(tree)
    except Exception:
        # The parser fails on what models write in many ways, RecursionError among them.
        return None


def _with_exact_leaves(tree: "sympy.Basic | sympy.MatrixBase") -> "sympy.Basic":
    """Returns a tree without unknown functions, derivatives, floats and symbols called i."""
    import sympy
    from sympy.core.function import AppliedUndef

    if isinstance(tree, sympy.MatrixBase):
        tree = tree.as_immutable()
    unknown_functions = tree.atoms(sympy.Derivative, AppliedUndef)
    variables = {node: sympy.Symbol(str(node)) for node in unknown_functions}
    tree = tree.xreplace(variables) if variables else tree
    fractions = {
        number: sympy.Rational(str(number)) for number in tree.atoms(sympy.Float)
    }
    symbols = tree.atoms(sympy.Symbol)
    imaginary_unit = {symbol: sympy.I for symbol in symbols if symbol.name == "i"}
    leaves = fractions | imaginary_unit
    return tree.xreplace(leaves) if leaves else tree


_MAX_EXPANDED_POWER = 16


def bit_bound(tree: object) -> float:
    """Returns an upper bound of the bits of the largest number in a tree that is not evaluated.

    A variable counts as 1 bit. The bound is infinite for a large power of a sum with variables,
    such as (x + y + z)^{50}, which would be expanded.
    """
    import sympy

    if isinstance(tree, sympy.Rational):
        return float(max(abs(tree.p).bit_length(), tree.q.bit_length()))
    argument_bits = [bit_bound(argument) for argument in getattr(tree, "args", ())]
    if isinstance(tree, sympy.Pow | sympy.exp):
        base, exponent = tree.as_base_exp()
        if exponent.is_Rational:
            power = abs(float(exponent))
        else:
            power = 2.0 ** min(
                bit_bound(exponent), 1000
            )  # 1000: 2.0 ** 1024 is no float
        if (
            isinstance(base, sympy.Add)
            and base.free_symbols
            and power > _MAX_EXPANDED_POWER
        ):
            return float("inf")
        return bit_bound(base) * max(power, 1.0)
    if isinstance(tree, sympy.factorial | sympy.binomial | sympy.gamma):
        # n! has fewer than n * log2(n) bits, and n is below 2 ** bits.
        return argument_bits[0] * 2.0 ** min(argument_bits[0], 1000)
    return sum(argument_bits) + 1.0 if argument_bits else 1.0


def _differ_in_value(first: object, second: object) -> bool:
    """Returns whether two trees are seen to differ without simplifying them.

    That is so for different kinds or shapes, for equations that have not the same variables, and
    for different values at the points tried.
    """
    import sympy

    if isinstance(first, sympy.MatrixBase) and isinstance(second, sympy.MatrixBase):
        if first.shape != second.shape:
            return True
        return any(map(_differ_in_value, first.flat(), second.flat()))
    if isinstance(first, sympy.Rel) and isinstance(second, sympy.Rel):
        values = _values_at_points(first.lhs - first.rhs, second.lhs - second.rhs)
        if len(values) != 2:
            return True
        # Equations such as y = x and 2 y = 2 x are multiples of each other: the ratio of their
        # values is the same at both points, here without division.
        (first_a, second_a), (first_b, second_b) = values
        is_multiple = _is_close(first_a * second_b, first_b * second_a)
        return not is_multiple or first.free_symbols != second.free_symbols
    if isinstance(first, sympy.Expr) and isinstance(second, sympy.Expr):
        values = _values_at_points(first, second)
        return not values or not all(_is_close(one, other) for one, other in values)
    return True


# Two points at which formulas are compared, as (value of the first variable, step to the next).
# Well-known constants, so that a formula does not meet its zeros and poles there.
_POINTS = (
    (0.7390851332151607, 1.3247179572447460),
    (1.2020569031595942, 0.5671432904097838),
)


def _values_at_points(
    first: "sympy.Expr", second: "sympy.Expr"
) -> "list[tuple[mpmath.mpf | mpmath.mpc, mpmath.mpf | mpmath.mpc]]":
    """Returns the values of two expressions at each point where both have a finite one."""
    import sympy

    variables = sorted(first.free_symbols | second.free_symbols, key=str)
    pairs = []
    for start, step in _POINTS:
        point = {
            variable: sympy.Float(start + step * index)
            for index, variable in enumerate(variables)
        }
        values = [expression.subs(point).evalf() for expression in (first, second)]
        if all(value.is_number and value.is_finite for value in values):
            # mpmath's floats, for they do not overflow. 53 bits are those of a Python float.
            pairs.append((values[0]._to_mpmath(53), values[1]._to_mpmath(53)))
    return pairs


def _is_close(one: "mpmath.mpf | mpmath.mpc", other: "mpmath.mpf | mpmath.mpc") -> bool:
    return abs(one - other) <= 1e-9 * max(abs(one), abs(other))
