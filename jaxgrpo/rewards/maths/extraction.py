# ruff: noqa: RUF001  (look-alikes are what is read)
r"""Finds the final answer of a completion.

It may stand in a box, after "####", after "the answer is", or be the last number.

extract_answer(r"... so he pays \boxed{\frac{1}{2}}.")             -> r"\frac{1}{2}"
extract_answer("... The answer is 42 because ...", ("phrase",))    -> "42 because"
extract_answer("6 boxes of 7 make 42", ("number",))                -> "42"
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import regex as re

from jaxgrpo.rewards.maths.quantities import DIGITS
from jaxgrpo.rewards.maths.units import changes_number
from jaxgrpo.rewards.prose import last_match, part

EXTRACTION_METHODS = ("boxed", "hashes", "phrase", "number")
r"""The places an answer can be taken from, the surest first: `\boxed{}`, `####`, "the answer is",
the last number."""

DEFAULT_METHODS = ("boxed", "hashes")
"""The places that cannot be mistaken for anything else."""


class MarkedText(NamedTuple):
    """A text that a box or "####" marks as an answer, and the position of its mark."""

    position: int
    text: str


def extract_answer(text: str, methods: Sequence[str] = DEFAULT_METHODS) -> str | None:
    r"""Returns the final answer of a completion; None if there is none.

    Only what is said after thinking counts: what follows the last `</think>`, if there is one, and
    precedes a `<think>` that is never closed. Other tags that models think in count as these: see
    `prose`.

    methods: where the answer may stand, some of EXTRACTION_METHODS
    """
    reply = part(text, "answer")
    # 1. The last mark: a balanced `\boxed{...}`, or `#### ...` to the end of its line.
    marked = find_boxes(reply) if "boxed" in methods else []
    if "hashes" in methods:
        marked += [
            MarkedText(match.start(), match[1]) for match in _HASHES.finditer(reply)
        ]
    if marked:
        return max(marked).text.strip()
    # 2. What follows the last phrase like "the answer is", in any language.
    answer = _answer_after_phrase(reply) if "phrase" in methods else None
    # 3. The last number.
    if answer is None and "number" in methods:
        return _last_number(reply)
    return answer


# --- gold answers ---------------------------------------------------------------------------------

# "<answer>19</answer>"
_ANSWER_TAGS = re.compile(
    r"<(answer|final_answer|solution)>(.*?)</\1>", re.DOTALL | re.IGNORECASE
)
# A box as golds have it: "\boxed{19}", or "\boxed 19" before a single word or number (group 1).
_GOLD_BOX = re.compile(
    r"(?<!\\)\\+(?:boxed|fbox|framebox)(?!\p{L})\s*(?:(?=\{)|([^\s{}$\\]*[^\s{}$\\.,;:]))"
)
# What may stand beside boxes that are the whole gold: "$", ", ", "and", "\text{ or }"
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;.]|\\text\s*\{\s*(?:and|or)\s*\}|\\[][()]|and|or)*"
)


@lru_cache(maxsize=1024)
def parse_gold(gold: str) -> tuple[str, ...]:
    r"""Returns the answers that a gold text stands for, one of which is enough.

    A gold is mostly the answer itself, and then it stays as it is. Where it is a box, `\boxed{19}`,
    `\fbox{19}` or `\boxed 19`, a whole solution with a box or `#### 19`, or has `<answer>` or
    `<solution>` tags, what these hold is the answer. Where it says "The answer is 19.", both 19 and
    the gold itself count, which may be an answer in words; so does "7个" of "答案是还剩7个".
    """
    tagged = _ANSWER_TAGS.findall(gold)
    if tagged:
        _, last_content = tagged[-1]
        return parse_gold(last_content)
    gold = _GOLD_BOX.sub(
        lambda box: rf"\boxed{{{box[1]}}}" if box[1] else r"\boxed", gold
    )
    reply = part(gold, "answer")
    marked = ", ".join(_contents_of_only_boxes(reply)) or extract_answer(reply)
    if marked:
        return (marked,)
    announced = (
        None if _NOUN_ALONE.match(reply.strip()) else _answer_after_phrase(reply)
    )
    if not announced:
        return (reply or gold,)
    counted = _WORDS_THEN_NUMBER.fullmatch(announced)
    return (announced, counted[1], reply) if counted else (announced, reply)


def _contents_of_only_boxes(text: str) -> list[str]:
    r"""Returns the contents of boxes that are the whole text: "\boxed{2} and \boxed{3}"."""
    contents = [box.text for box in sorted(find_boxes(text))]
    for content in contents:
        box = rf"\boxed{{{content}}}"
        if box not in text:  # it was removed with the box that it stood in
            return []
        text = text.replace(box, "", 1)
    return list(dict.fromkeys(contents)) if _BETWEEN_BOXES.fullmatch(text) else []


# --- marks ----------------------------------------------------------------------------------------

# "#### 42"
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*(\S.*)")
# "\boxed{", an escaped character, or a brace
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def find_boxes(text: str) -> list[MarkedText]:
    r"""Returns position and content of each balanced `\boxed{...}`, inner ones included.

    One pass over the text, however braces are nested.
    """
    boxes = []
    opened = []  # the braces not closed yet, of boxes and others
    for match in _BRACES.finditer(text):
        if match[0].endswith("{") and match[0] != r"\{":
            opened.append(match)
        elif match[0] == "}" and opened:
            start = opened.pop()
            if start[0] != "{":
                boxes.append(
                    MarkedText(start.start(), text[start.end() : match.start()])
                )
    return boxes


# --- phrases --------------------------------------------------------------------------------------

_IS = r"(?:is|are|was|equals|would\ be|will\ be|:|=)"
PHRASES = {
    "en": rf"\banswers?\b(?:\ (?:to|of|for)\ [^.:\n]{{0,60}}?)?\s*{_IS}",
    "zh": r"答案(?:】|(?:应该|應該)?(?:是|为|為|等于|等於|:|=))|故[选選]",
    "ko": r"(?:정답|답)(?:은|이|:|=)",
    "uk": r"відповід[\p{L}]*(?:\s*є)?\s*(?:[:=—–-]|становить|дорівнює)|відповіддю\ є",
    "ru": r"ответ[\p{L}]*\s*(?:[:=—–-]|равен|составляет|будет|это)|ответом\ является",
    "ja": r"(?:答え|解答|正解|答)(?:は|:|=)",
    "th": r"คำตอบ(?:สุดท้าย|ที่ถูกต้อง)?\s*(?:คือ|เป็น|เท่ากับ|:|=)",
    "de": r"\b(?:antwort|lösung|ergebnis)\b\s*(?:ist|lautet|beträgt|:|=)",
    "fr": r"\b(?:réponse|résultat)\b(?:\ finale?)?\s*(?:est|vaut|:|=)",
    "es": r"\b(?:respuesta|resultado)\b(?:\ (?:final|correcta))?\s*(?:es|:|=)",
    "sw": r"\bjibu\b(?:\ (?:la\ mwisho|sahihi))?\s*(?:ni|:|=)",
    "te": r"(?:సమాధానం|జవాబు)\s*(?:ఏమిటంటే)?\s*[:=]?",
    "bn": r"(?:উত্তর|উত্তরটি)(?:টি)?\s*(?:হল|হলো|হবে|হচ্ছে)?\s*[:=]?",
    "vi": r"(?:đáp\ án|đáp\ số|câu\ trả\ lời|kết\ quả)(?:\ (?:cuối\ cùng|đúng))?\s*(?:là|bằng|:|=)",
    "ar": (
        r"(?:الجواب|الإجابة|الاجابة|الناتج)"
        r"(?:\ (?:النهائي|النهائية|الصحيحة|الصحيح))?\s*(?:هو|هي|:|=)"
    ),
    "hi": r"(?:उत्तर|जवाब)\s*(?:है|होगा)?\s*[:=]?",
}
"""What announces an answer, by language: "the answer to this question is", "答案是", "Jibu ni".
All are looked for in every text: models do not keep to one language."""

_PHRASE = re.compile(
    "|".join(f"(?:{phrase})" for phrase in PHRASES.values()), re.IGNORECASE | re.VERBOSE
)
# A word for "answer" that no verb follows: in Hindi and Bengali it is that for "north" as well.
_NOUN_ALONE = re.compile(
    r"(?:సమాధానం|జవాబు|উত্তর|উত্তরটি|उत्तर|जवाब)\s+(?!ఏమిటంటే|হল|হবে|হচ্ছে|है|होगा)\p{L}"
)
_FULL_WIDTH_SIGNS = str.maketrans("：＝", ":=")
# "$x$", "$$x$$", "\(x\)", "\[x\]"
_FORMULA = re.compile(r"\$\$?([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
# All up to the sentence's end; a point that no space follows, as in "3.5", ends nothing.
_SENTENCE = re.compile(r"(?:[^.!?。！？｡।\n]|[.](?=\S))*")
# The comma of "42, because ...", not that of "1,234" or "42, 43"
_CLAUSE_END = re.compile(r"[，；](?!\p{Nd})|[,;]\s+(?=\p{L}{2})")
# "$42 dollars, ..."
_NUMBER_AND_WORD = re.compile(
    r"((?:\\?[$€£¥₹₴₽]\s?)?-?" + DIGITS + r")\s+(\p{L}[\p{L}\p{M}]*)(?=[\s,;])"
)
# "42", "-$42"
_STARTS_WITH_NUMBER = re.compile(r"\D{0,2}\p{Nd}")
_HAN_KANA = r"[\p{Han}\p{Hiragana}\p{Katakana}]+"
# "还剩7个": a clause without spaces that says how many (group 1: "7个"), but not "零下19度", which
# is below zero.
_WORDS_THEN_NUMBER = re.compile(rf"{_HAN_KANA}(?<![负負下])((?:{DIGITS}){_HAN_KANA})")
_FILLER = re.compile(r"[\s*_:=]*")


def _answer_after_phrase(text: str) -> str | None:
    """Returns the answer in the sentence after the last phrase; None if there is no phrase.

    Emphasis is left out. The answer is a formula that the sentence begins with, or its clause. Of a
    clause that begins with a number and goes on, it is the number and the next word: "42 because
    ..." ends there, and "3 million ..." or "42 or ..." is not the number alone.
    """
    text = text.translate(_FULL_WIDTH_SIGNS).replace("**", "")
    phrase = last_match(_PHRASE, text)
    if phrase is None:
        return None
    start = _FILLER.match(text, phrase.end()).end()
    formula = _FORMULA.match(text, start)
    if formula:
        return next(filter(None, formula.groups())).strip()
    clause = _SENTENCE.match(text, start)[0].strip()
    number = _NUMBER_AND_WORD.match(clause)
    if number and not changes_number(number[2]):
        return f"{number[1]} {number[2]}"
    clause_end = (
        _CLAUSE_END.search(clause) if _STARTS_WITH_NUMBER.match(clause) else None
    )
    if clause_end and not changes_number(clause[clause_end.end() :]):
        clause = clause[: clause_end.start()]
    return clause or None


# --- the last number ------------------------------------------------------------------------------

# "-7", "1,234.50", "3/4", "2^{10}", "20\%", "\frac{1}{2}"; not the 1 of "x1" or "x_1". The minus of
# "50-8" is no sign.
_LAST_NUMBER = re.compile(
    rf"""
    (?<![\p{{L}}\p{{Nd}}_^.,\\{{])(?:(?<![\p{{L}}\p{{Nd}})}}])[-−])?
    (?: \\[dt]?frac\s*\{{-?\d+\}}\s*\{{-?\d+\}}
      | (?:{DIGITS})(?:\^\{{?-?\d+\}}?)?(?:/\d+)?(?:\s?\\?%)?
    )""",
    re.VERBOSE,
)


def _last_number(text: str) -> str | None:
    number = last_match(_LAST_NUMBER, text)
    return number[0] if number else None
