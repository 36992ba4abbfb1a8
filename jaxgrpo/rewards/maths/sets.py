# ruff: noqa: RUF001  (look-alikes are what is read)
r"""Answers that hold several: tuples, sets, lists, intervals, unions; and answers with a name before them.

as_collection(r"\{1\pm\sqrt{5},-2\}")   -> ("{}", [r"1+\sqrt{5}", r"1-\sqrt{5}", "-2"])
as_collection("(3, 4]")                 -> ("(]", ["3", "4"])
as_collection(r"x \ge 2")               -> ("[)", ["2", r"\infty"])
as_collection("x + 1")                  -> None
strip_name("x = 5", "5")                -> ("5", "5")
"""

from collections.abc import Iterator

import regex as re

from jaxgrpo.rewards.maths.quantities import plain

Collection = tuple[str, list[str]]
"""(kind, parts). kind: the two brackets of a tuple, list or interval; "{}" for a set or what has no brackets, where
order does not matter; "cup" for a union."""


def as_collection(text: str) -> Collection | None:
    """What a tidy text lists; None if it is a single thing."""
    text = _OPENING.sub("", text.strip())
    interval = _relation(text)
    if interval:
        return interval
    union = _split(text, r"\cup")
    if len(union) > 1:
        return "cup", union
    bracketed = _brackets(text)
    if bracketed:
        kind, inside = bracketed
        parts = _parts(inside)
        return (kind, parts) if len(parts) > 1 else as_collection(inside)
    parts = _parts(text)
    return ("{}", parts) if len(parts) > 1 else None


def unwrap(text: str) -> str:
    """A tidy text without brackets around a single thing: a set of one is that one."""
    bracketed = _brackets(text)
    return bracketed[1] if bracketed and bracketed[1] and len(_parts(bracketed[1])) == 1 else text


_OPENING = re.compile(r"^\\(?:quad|therefore)\b\s*")


# --- names ------------------------------------------------------------------------------------------------------------

_LETTER = (
    r"(?:[A-Za-z]|\\(?!frac|sqrt|pi\b|infty|left|right|log|ln|sin|cos|tan|text|begin)[A-Za-z]+)"
)
_NAME = re.compile(
    rf"""(?P<name>{_LETTER}(?:_(?:\w|\{{[^{{}}]*\}}))?'? (?:\([^()=]{{1,10}}\))?
        | \({_LETTER}(?:,\s*{_LETTER}){{1,3}}\)
        | (?=[^=<>]*\p{{L}}{{3}})[\p{{L}}\p{{M}}\s]{{3,40}} | \\angle[\w\s_{{}}]{{1,20}})
    \s*(?:=|:|\\in(?![A-Za-z])|\\approx(?![A-Za-z]))\s*(?P<value>[^=]+)""",
    re.VERBOSE,
)


def strip_name(answer: str, gold: str) -> tuple[str, str]:
    """Both without the `x =`, `f(x) =` or `x \\in` that only one of them has, or that both have alike.

    Different names stay: x = 5 is not y = 5.
    """
    first, second = _NAME.fullmatch(answer), _NAME.fullmatch(gold)
    if first and second and plain(first["name"]) != plain(second["name"]):
        return answer, gold
    if (first and not second and "=" in gold) or (second and not first and "=" in answer):
        return answer, gold  # two equations, or a list of them
    return (first["value"].strip() if first else answer), (
        second["value"].strip() if second else gold
    )


# --- relations as intervals -------------------------------------------------------------------------------------------

_LESS = re.compile(r"\\(?:leqslant|leq|le)(?![A-Za-z])|<=")
_GREATER = re.compile(r"\\(?:geqslant|geq|ge)(?![A-Za-z])|>=")
_STRICT = re.compile(r"\\(lt|gt)(?![A-Za-z])")
_ONE_SIDED = re.compile(rf"({_LETTER})\s*([<>≤≥])\s*([^<>≤≥=,]+)")
_OTHER_SIDE = re.compile(rf"([^<>≤≥=,]+?)\s*([<>≤≥])\s*({_LETTER})")
_TWO_SIDED = re.compile(rf"([^<>≤≥=,]+?)\s*([<>≤≥])\s*{_LETTER}\s*([<>≤≥])\s*([^<>≤≥=,]+)")
_TURNED = str.maketrans("<>≤≥", "><≥≤")


def _relation(text: str) -> Collection | None:
    r"""`x < 3` as (-\infty, 3), `-2 \le x < 3` as [-2, 3)."""
    text = _STRICT.sub(
        lambda match: "<" if match[1] == "lt" else ">", _GREATER.sub("≥", _LESS.sub("≤", text))
    )
    if not re.search("[<>≤≥]", text):
        return None
    two = _TWO_SIDED.fullmatch(text)
    if two:
        low, first, second, high = two.groups()
        if first in ">≥":
            low, first, second, high = (
                high,
                second.translate(_TURNED),
                first.translate(_TURNED),
                low,
            )
        if first in "<≤" and second in "<≤":
            return ("[" if first == "≤" else "(") + ("]" if second == "≤" else ")"), [
                low.strip(),
                high.strip(),
            ]
        return None
    one = _ONE_SIDED.fullmatch(text)
    sign, bound = one.groups()[1:] if one else ("", "")
    if not one and (other := _OTHER_SIDE.fullmatch(text)):
        sign, bound = other[2].translate(_TURNED), other[1]
    if not sign:
        return None
    if sign in "<≤":
        return ("(]" if sign == "≤" else "()"), [r"-\infty", bound.strip()]
    return ("[)" if sign == "≥" else "()"), [bound.strip(), r"\infty"]


# --- brackets and commas ----------------------------------------------------------------------------------------------

_PAIRS = [
    (r"\{", r"\}"),
    (r"\lbrace", r"\rbrace"),
    (r"\langle", r"\rangle"),
    ("(", ")"),
    ("[", "]"),
    ("(", "]"),
    ("[", ")"),
]
_KINDS = {(r"\{", r"\}"): "{}", (r"\lbrace", r"\rbrace"): "{}", (r"\langle", r"\rangle"): "()"}
_BRACKET = re.compile(
    r"\\(?:lbrace|langle)(?![A-Za-z])|\\(?:rbrace|rangle)(?![A-Za-z])|\\.|[(){}\[\]]", re.DOTALL
)
_OPEN = {"(", "[", "{", r"\{", r"\lbrace", r"\langle"}
_CLOSE = {")", "]", "}", r"\}", r"\rbrace", r"\rangle"}


def _brackets(text: str) -> tuple[str, str] | None:
    """(kind, inside) of a text that one pair of brackets encloses."""
    for opening, closing in _PAIRS:
        if (
            text.startswith(opening)
            and text.endswith(closing)
            and len(text) >= len(opening) + len(closing)
        ):
            inside = text[len(opening) : -len(closing)]
            if all(depth >= 0 for _, depth in _depths(inside)):
                return _KINDS.get((opening, closing), opening + closing), inside.strip()
    return None


def _depths(text: str) -> Iterator[tuple[re.Match, int]]:
    """Every bracket, and how many are open after it. Any bracket closes any other: [0, 1) is no mistake."""
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += (match[0] in _OPEN) - (match[0] in _CLOSE)
        yield match, depth


_AND = re.compile(
    r"""\s*,?\s*(?:\\text\s*\{\s*(?:and|or)\s*\} | \\(?:quad\s*)?(?:lor|vee)(?![A-Za-z])
      | \b(?:and|or|und|oder|et|ou|та|або|и|или|và|hoặc)\b | (?<=\d\s+)(?:y|o|e|na|au|і|й|و)(?=\s+[-\d\\])
      | 和|或|及|및|또는|または|และ|หรือ|और|या|এবং|మరియు|లేదా|أو)\s*""",
    re.VERBOSE,
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def _parts(text: str) -> list[str]:
    r"""What stands between commas, "and" or "or"; between semicolons, if there are any. `\pm` makes two of a part.

    Where a comma with a space separates, one between groups of three digits does not: "1,234, 5,678" are two.
    """
    text = _AND.sub(", ", text).strip(" ,")
    parts = _split(text, ";")
    if len(parts) == 1:
        parts = _split(_THOUSANDS.sub("", text) if ", " in text else text, ",")
    return [sign for part in parts for sign in _signs(part)]


def _signs(part: str) -> list[str]:
    if not re.search(r"\\(?:pm|mp)(?![A-Za-z])", part):
        return [part]
    plus = re.sub(r"\\mp(?![A-Za-z])", "-", re.sub(r"\\pm(?![A-Za-z])", "+", part))
    minus = re.sub(r"\\mp(?![A-Za-z])", "+", re.sub(r"\\pm(?![A-Za-z])", "-", part))
    return [plus.removeprefix("+").strip(), minus.strip()]


def _split(text: str, separator: str) -> list[str]:
    """The text cut at every separator that no bracket encloses; parts are stripped, and none is empty."""
    cuts, enclosed_from = [0], None
    spans = []
    for match, depth in _depths(text):
        if depth > 0 and enclosed_from is None:
            enclosed_from = match.start()
        elif depth <= 0 and enclosed_from is not None:
            spans.append((enclosed_from, match.end()))
            enclosed_from = None
    for match in re.finditer(re.escape(separator), text):
        if enclosed_from is not None and match.start() >= enclosed_from:
            break
        if not any(start <= match.start() < end for start, end in spans):
            cuts += [match.start(), match.end()]
    pieces = [
        text[start:end].strip()
        for start, end in zip(cuts[::2], [*cuts[1::2], len(text)], strict=True)
    ]
    return [piece for piece in pieces if piece] or [text]
