r"""What of a completion is language: the part asked for, without mathematics, code and addresses. In linear time.

part(text, "think")                    what is between <think> and </think>
strip_formulas(r"So $x = 5$ apples")   "So   apples"
"""

from collections.abc import Iterator

import regex as re

PARTS = ("think", "answer", "all")

_THOUGHT = r"(?:think(?:ing)?|thoughts?|reasoning|THINK(?:ING)?)"
OPENS_THOUGHTS = re.compile(
    rf"<{_THOUGHT}> | \[{_THOUGHT}\] | ◁{_THOUGHT}▷ | <\|(?:begin_of|START)_{_THOUGHT}\|>",
    re.VERBOSE,
)
CLOSES_THOUGHTS = re.compile(
    rf"</{_THOUGHT}> | \[/{_THOUGHT}\] | ◁/{_THOUGHT}▷ | <\|(?:end_of|END)_{_THOUGHT}\|>",
    re.VERBOSE,
)
"""The tags that models think in: <think>, <thinking>, <thought>, <reasoning>, [THINK], ◁think▷,
<|begin_of_thought|>, <|START_THINKING|>."""


def part(text: str, name: str) -> str:
    """One of PARTS of a completion: its chain of thought, what is said after it, or all.

    A chain of thought stands between `<think>` and `</think>`, or other tags that models think in.

    think: from the first `<think>`, or the start, to the last `</think>`, or the end; all of a text without either tag.
    answer: after the last `</think>`, to a `<think>` that is never closed; all of a text without either tag.
    """
    if name == "all":
        return text
    closing = None
    for closing in CLOSES_THOUGHTS.finditer(text):  # noqa: B007
        pass
    if name == "answer":
        return OPENS_THOUGHTS.split(text[closing.end() :] if closing else text, 1)[0]
    before = text[: closing.start()] if closing else text
    opening = OPENS_THOUGHTS.search(before)
    return before[opening.end() :] if opening else before


def closing_tag(tag: str) -> str:
    """Returns what closes a tag: "</think>" for "<think>", "<|x_end|>" for "<|x_start|>"."""
    if tag.startswith("<|"):
        return re.sub("begin|start", "end", re.sub("BEGIN|START", "END", tag))
    return f"{tag[0]}/{tag[1:]}"


# Every group is a kind of delimiter; `drop` is dropped alone. No quantifier can look twice at the same character.
_TOKEN = re.compile(
    r"""(?P<fence>```++|~~~++) | (?P<tick>`) | (?P<dollars>\$\$) | (?P<dollar>\$)
      | \\(?:(?P<round>[()]) | (?P<square>[\[\]]) | (?P<environment>begin|end)\{[A-Za-z]*+\*?\} | (?P<box>boxed)\s*+\{
            | (?P<drop>[A-Za-z]++\*?|.))
      | (?P<brace>[{}]) | (?P<drop>https?://[!-~]++|www\.[!-~]++|</?[A-Za-z][\w-]{0,30}+\s*+/?>)
      | (?P<stop>(?<=\p{L}\p{L})[.:](?=\p{L}\p{L}))""",
    re.DOTALL | re.VERBOSE,
)
_CLOSES = frozenset((")", "]", "end"))
# Words in a row between delimiters of mathematics: four are more than a label, and nothing hides there.
_PROSE = re.compile(
    r"(?<![\p{L}\p{M}\\])[\p{L}\p{M}]{2,}+(?:[\s,.;:'’-]++[\p{L}\p{M}]{2,}+){3}"  # noqa: RUF001
    r"|(?<!\p{L})[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]{12,}+"
)


def strip_formulas(text: str) -> str:
    r"""The text with a space for each formula, piece of code, address, tag and LaTeX command; one pass, however long.

    A formula is `$..$` in one line, `$$..$$`, `\(..\)`, `\[..\]`, `\begin..\end` or `\boxed{..}`, braces balanced; code
    is between fences or, in one line, backticks. A delimiter without its partner is dropped alone, and so are those of
    a formula that holds four words in a row, or 12 letters where a script has no spaces: that is no formula. So is a
    dollar sign with a space on one side of the pair only, as in "$5 for lunch and $6".
    """
    tokens = list(_TOKEN.finditer(text))
    if not tokens:
        return text
    return " ".join(_kept(text, tokens, _partners(text, tokens)))


def _kept(text: str, tokens: list[re.Match], partners: dict[int, int]) -> Iterator[str]:
    position = index = 0
    inside = (
        -1
    )  # the end of the outermost box that holds prose: boxes within are not looked at again
    while index < len(tokens):
        token, partner = tokens[index], partners.get(index)
        if partner is None or (token["box"] and token.start() < inside):
            last = index
        elif token["fence"] or not _PROSE.search(text, token.end(), tokens[partner].start()):
            last = partner
        else:
            last = index
            inside = tokens[partner].end() if token["box"] else inside
        yield text[position : token.start()] + ("." if token["stop"] else "")
        position, index = tokens[last].end(), last + 1
    yield text[position:]


def _partners(text: str, tokens: list[re.Match]) -> dict[int, int]:
    """For each token that opens something, which one closes it: the next of its kind, or of a box the balanced brace."""
    partners: dict[int, int] = {}
    latest: dict[str, int] = {}
    braces: list[int] = []
    for index, token in enumerate(tokens):
        kind = token.lastgroup
        if kind == "box" or token["brace"] == "{":
            braces.append(index)
        elif kind == "brace":
            if braces:
                partners[braces.pop()] = index
        elif kind not in ("drop", "stop"):
            before = latest.get(kind)
            if before is not None and _is_pair(text, kind, tokens[before], token):
                partners[before] = index
            latest[kind] = index
    return {
        opening: closing for opening, closing in partners.items() if not tokens[opening]["brace"]
    }


def _is_pair(text: str, kind: str, opening: re.Match, closing: re.Match) -> bool:
    if kind in ("fence", "dollars"):
        return True
    if kind in ("dollar", "tick"):
        start, end = opening.end(), closing.start()
        return (
            "\n" not in text[start:end]
            and text[start : start + 1].isspace() == text[end - 1 : end].isspace()
        )
    return opening[kind] not in _CLOSES and closing[kind] in _CLOSES
