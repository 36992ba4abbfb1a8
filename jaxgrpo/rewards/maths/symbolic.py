r"""Are two formulas equal? By math-verify, behind guards that let through only what it can compute in a moment.

    same_expression(r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}")   -> True
    same_expression("9^{9^{9}}", "1")                               -> False, at once

math-verify parses LaTeX with a grammar, into a SymPy tree that it does not yet evaluate: no `eval`, no `exec`. Its
timeouts are alarms, which work in the main thread only: they are off. A formula is refused, and equals nothing,

1. as text: if it is long, deeply nested, a tower of powers, has words, or commands other than `_COMMANDS`, such as sums;
2. as a tree, before any of it is evaluated: if a value in it could have more than `MAX_BITS` bits (`9^{9^9}`, `(9!)!`);
3. as numbers: two formulas that differ at a random point are different, and so are two equations that are not multiples
   of each other there. Only the rest is worth simplifying or solving.

Functions without a meaning, such as f(x), and derivatives are variables here.

What is slow all the same is for the pool's deadline.
"""

from functools import cache, lru_cache
from typing import Any

import regex as re

MAX_LENGTH = 300
MAX_DEPTH = 8
MAX_DIGITS = 50
MAX_BITS = 30_000

_KNOWN = """frac sqrt pi cdot times div le leq ge geq lt gt binom sin cos tan cot sec csc arcsin arccos arctan sinh cosh
    tanh log ln exp circ lfloor rfloor lceil rceil begin end pmatrix bmatrix vmatrix matrix dot ddot prime hbar odot
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi
    varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"""
_COMMANDS = frozenset(_KNOWN.split())
_FUNCTIONS = {
    "sqrt",
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "arcsin",
    "arccos",
    "arctan",
    "sinh",
    "cosh",
    "tanh",
    "log",
    "exp",
}
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_WORD = re.compile(r"[A-Za-z]{3,}")
_FORBIDDEN = re.compile(r"[^\x20-\x7e]|[\"'`@#$%?:;~]|\d\)?\s*_|\^\s*\^")
_TOWER = re.compile(r"\d[)}\s]*\^(?:\s*\d+|[\s({]+[^{}()]*\d[)}\s]*)\s*\^|!\s*\)?\s*!")
_RUN = re.compile(
    rf"\d{{{MAX_DIGITS + 1},}}|\\binom.*\d{{4}}"
)  # a binomial of plain numbers is evaluated at once


def same_expression(answer: str, gold: str) -> bool:
    """Whether two tidy formulas (expressions, equations, matrices) are equal wherever they are defined."""
    answer, gold = _spell(answer), _spell(gold)
    if not (is_safe(gold) and is_safe(answer)):
        return False
    first, second = _parse(answer), _parse(gold)
    if first is None or second is None:
        return False
    try:
        return not _differ(first, second) and _math_verify().verify(
            second, first, timeout_seconds=None, float_rounding=12
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


def is_safe(text: str) -> bool:
    """Whether a formula may be given to the parser: point 1 above."""
    if (
        not 0 < len(text) <= MAX_LENGTH
        or _FORBIDDEN.search(text)
        or _RUN.search(text)
        or _TOWER.search(text)
    ):
        return False
    if not _COMMANDS.issuperset(_COMMAND.findall(text)) or _depth(text) > MAX_DEPTH:
        return False
    bare = _COMMAND.sub(" ", re.sub(r"\\(?:begin|end)\{\w+\}|_\{\w+\}", " ", text))
    words = [word for word in _WORD.findall(bare) if word not in _FUNCTIONS]
    # "2abc" is a product, "seat" and "no" are words: the parser would take them for products, and so for "east" and "on".
    return all(len(word) <= 3 for word in words) and not (len(text) > 1 and text.isalpha())


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


_NUMPY = re.compile(r"\b(?:np|math)\.(?=[a-z])")
_SCIENTIFIC = re.compile(r"(?<=\d)[eE]([-+]?\d+)")
_TEXT = re.compile(
    r"\\(?:text|mathrm|mathbf|mathit|operatorname|mathbb|boldsymbol)\s*\{\s*([^{}]*?)\s*\}"
)
_PRIME = re.compile(r"\^\s*\{?\\prime\}?|'(?!')")
_POINT = re.compile(r"(?<=\d)\.(?!\d)")


def _spell(text: str) -> str:
    """Notations that the parser does not know, or misreads, in those that it knows."""
    text = _TEXT.sub(r"\1", _NUMPY.sub(r"\\", text)).replace("**", "^")
    text = _SCIENTIFIC.sub(r"\\times 10^{\1}", text)
    text = re.sub(
        r"(?<![A-Za-z\\])E_", r"\\Xi_", re.sub(r"\s+\^", "^", text)
    )  # an energy, which is not Euler's number
    return _POINT.sub("", _PRIME.sub("_{prime}", text)).strip()


def warm_up() -> None:
    """Import math-verify and make its grammar's tables: a second, which a worker does not want to pay out of a deadline."""
    same_expression(r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}")
    same_expression("x^2+2x+1", "(x+1)^2")


@cache
def _math_verify():
    """math-verify, imported when first needed: half a second that a trainer never pays, nor plain numbers."""
    import logging

    import math_verify

    logging.getLogger("math_verify").setLevel(
        logging.ERROR
    )  # it warns that its alarms are off, as they should be
    return math_verify


@lru_cache(maxsize=256)  # a group of completions has one gold
def _parse(text: str) -> Any:
    """The SymPy tree of a safe formula, decimals as exact fractions and i the imaginary unit; None if it has none."""
    import sympy
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from sympy.core.function import AppliedUndef

    # "units" would take the m of 6m for metres.
    normal = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )
    try:
        clean = normalize_latex(text, config=normal)
        config = ConversionConfig(lowercase_symbols=False)
        tree = latex2sympy(clean, normalization_config=None, conversion_config=config)
        if bits(tree) > MAX_BITS:
            return None
        tree = tree.as_immutable() if isinstance(tree, sympy.MatrixBase) else tree
        names = {
            node: sympy.Symbol(str(node)) for node in tree.atoms(sympy.Derivative, AppliedUndef)
        }
        tree = tree.xreplace(names) if names else tree
        exact = {number: sympy.Rational(str(number)) for number in tree.atoms(sympy.Float)}
        unit = {symbol: sympy.I for symbol in tree.atoms(sympy.Symbol) if symbol.name == "i"}
        return tree.xreplace(exact | unit) if exact or unit else tree
    except (
        Exception
    ):  # what the parser makes of a model's text, it raises in many ways; RecursionError is one
        return None


def bits(tree: Any) -> float:
    """An upper bound of the bits of the largest number in a tree that is not evaluated; a variable counts as 1."""
    import sympy

    if isinstance(tree, sympy.Rational):
        return float(max(abs(tree.p).bit_length(), tree.q.bit_length()))
    args = [bits(arg) for arg in getattr(tree, "args", ())]
    if isinstance(tree, sympy.Pow | sympy.exp):
        base, exponent = tree.as_base_exp()
        times = abs(float(exponent)) if exponent.is_Rational else 2.0 ** min(bits(exponent), 1000)
        if isinstance(base, sympy.Add) and base.free_symbols and times > 16:
            return float("inf")  # nobody wants (x + y + z)^{50} expanded
        return bits(base) * max(times, 1.0)
    if isinstance(tree, sympy.factorial | sympy.binomial | sympy.gamma):
        return args[0] * 2.0 ** min(args[0], 1000)
    return sum(args) + 1.0 if args else 1.0


_POINTS = (0.7390851332151607, 1.3247179572447460), (1.2020569031595942, 0.5671432904097838)


def _differ(first: Any, second: Any) -> bool:
    """Whether two trees are seen to differ: other kinds or shapes, variables in but one of two equations, or values."""
    import sympy

    if isinstance(first, sympy.MatrixBase) and isinstance(second, sympy.MatrixBase):
        return first.shape != second.shape or any(map(_differ, first.flat(), second.flat()))
    if isinstance(first, sympy.Rel) and isinstance(second, sympy.Rel):
        pairs = _values(first.lhs - first.rhs, second.lhs - second.rhs)
        multiple = len(pairs) == 2 and _near(pairs[0][0] * pairs[1][1], pairs[1][0] * pairs[0][1])
        return not multiple or first.free_symbols != second.free_symbols
    if isinstance(first, sympy.Expr) and isinstance(second, sympy.Expr):
        pairs = _values(first, second)
        return not pairs or not all(_near(one, other) for one, other in pairs)
    return True


def _values(first: Any, second: Any) -> list[tuple[Any, Any]]:
    """The values of two expressions at the points at which both have one: not infinity. mpmath's, of any size."""
    import sympy

    names = sorted(first.free_symbols | second.free_symbols, key=str)
    pairs = []
    for start, step in _POINTS:
        point = {name: sympy.Float(start + step * index) for index, name in enumerate(names)}
        values = [expression.subs(point).evalf() for expression in (first, second)]
        if all(value.is_number and value.is_finite for value in values):
            pairs.append((values[0]._to_mpmath(53), values[1]._to_mpmath(53)))
    return pairs


def _near(one: Any, other: Any) -> bool:
    return abs(one - other) <= 1e-9 * max(abs(one), abs(other))
