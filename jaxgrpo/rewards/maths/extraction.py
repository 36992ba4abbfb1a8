# ruff: noqa: RUF001  (look-alikes are what is read)
r"""Where a completion says its final answer: in a box, after "####", after "the answer is", or as its last number.

final_answer(r"... so he pays \boxed{\frac{1}{2}}.")             -> r"\frac{1}{2}"
final_answer("... The answer is 42 because ...", ("phrase",))    -> "42 because"
final_answer("6 boxes of 7 make 42", ("number",))                -> "42"
"""

from collections.abc import Sequence
from functools import lru_cache

import regex as re

from jaxgrpo.rewards.maths.quantities import DIGITS, is_multiplier
from jaxgrpo.rewards.prose import part

EXTRACT = ("boxed", "hashes", "phrase", "number")
r"""The places an answer can be taken from, the surest first: `\boxed{}`, `####`, "the answer is", the last number."""

MARKS = ("boxed", "hashes")
"""The places that cannot be mistaken for anything else."""


def final_answer(text: str, extract: Sequence[str] = MARKS) -> str | None:
    r"""The answer from one of the places named in `extract`; None where there is none.

    Of the last balanced `\boxed{...}` and the last `#### ...` (to the end of its line), the one that comes last. Without
    either, what follows the last phrase like "the answer is", in any language of `PHRASES`; without that, the last
    number. Only what is said after thinking counts: what follows the last `</think>`, if there is one, and what precedes
    a `<think>` that is never closed. Other tags that models think in count as these: see `prose`.
    """
    said = part(text, "answer")
    marks = boxes(said) if "boxed" in extract else []
    marks += (
        [(match.start(), match[1]) for match in _HASHES.finditer(said)]
        if "hashes" in extract
        else []
    )
    if marks:
        return max(marks)[1].strip()
    answer = _after_phrase(said) if "phrase" in extract else None
    return _last_number(said) if answer is None and "number" in extract else answer


@lru_cache(maxsize=1024)
def gold_readings(gold: str) -> tuple[str, ...]:
    r"""Returns the answers that a gold text stands for, one of which is enough.

    A gold is mostly the answer itself, and then it stays as it is. Where it is a box, `\boxed{19}`,
    `\fbox{19}` or `\boxed 19`, a whole solution with a box or `#### 19`, or has `<answer>` or
    `<solution>` tags, what these hold is the answer. Where it says "The answer is 19.", both 19 and
    the gold itself count, which may be an answer in words; so does "7个" of "答案是还剩7个".
    """
    tagged = _ANSWER_TAGS.findall(gold)
    if tagged:
        return gold_readings(tagged[-1][1])
    gold = _BOX.sub(lambda box: rf"\boxed{{{box[1]}}}" if box[1] else r"\boxed", gold)
    said = part(gold, "answer")
    marked = ", ".join(_only_boxes(said)) or final_answer(said)
    if marked:
        return (marked,)
    told = None if _NOUN_ALONE.match(said.strip()) else _after_phrase(said)
    if not told:
        return (said or gold,)
    counted = _WORDS_THEN_NUMBER.fullmatch(told)
    return (told, counted[1], said) if counted else (told, said)


def _only_boxes(text: str) -> list[str]:
    r"""Returns the contents of several boxes that are the whole text: "\boxed{2} and \boxed{3}"."""
    contents = [content for _, content in sorted(boxes(text))]
    for content in contents:
        box = rf"\boxed{{{content}}}"
        if box not in text:  # it went with the box that it stood in
            return []
        text = text.replace(box, "", 1)
    return list(dict.fromkeys(contents)) if _BETWEEN_BOXES.fullmatch(text) else []


_ANSWER_TAGS = re.compile(r"<(answer|final_answer|solution)>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_BOX = re.compile(
    r"(?<!\\)\\+(?:boxed|fbox|framebox)(?!\p{L})\s*(?:(?=\{)|([^\s{}$\\]*[^\s{}$\\.,;:]))"
)
"""A box as golds have it: with its braces, or without, before a single word or number."""
_BETWEEN_BOXES = re.compile(r"(?:[\s$,;.]|\\text\s*\{\s*(?:and|or)\s*\}|\\[][()]|and|or)*")
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*(\S.*)")
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def boxes(text: str) -> list[tuple[int, str]]:
    r"""(position, content) of each balanced `\boxed{...}`, inner ones included. One pass, however braces are nested."""
    found, opened = [], []
    for match in _BRACES.finditer(text):
        if match[0].endswith("{") and match[0] != r"\{":
            opened.append(match)
        elif match[0] == "}" and opened:
            start = opened.pop()
            if start[0] != "{":
                found.append((start.start(), text[start.end() : match.start()]))
    return found


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
    "ar": r"(?:الجواب|الإجابة|الاجابة|الناتج)(?:\ (?:النهائي|النهائية|الصحيحة|الصحيح))?\s*(?:هو|هي|:|=)",
    "hi": r"(?:उत्तर|जवाब)\s*(?:है|होगा)?\s*[:=]?",
}
"""What announces an answer, by language. All are looked for in every text: models do not keep to one language."""

_PHRASE = re.compile(
    "|".join(f"(?:{phrase})" for phrase in PHRASES.values()), re.IGNORECASE | re.VERBOSE
)
_NOUN_ALONE = re.compile(
    r"(?:సమాధానం|జవాబు|উত্তর|উত্তরটি|उत्तर|जवाब)\s+(?!ఏమిటంటే|হল|হবে|হচ্ছে|है|होगा)\p{L}"
)
"""A word for "answer" that no verb follows: in Hindi and Bengali it is that for "north" as well."""
_FULL_WIDTH_SIGNS = str.maketrans("：＝", ":=")
_FORMULA = re.compile(r"\$\$?([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SENTENCE = re.compile(r"(?:[^.!?。！？｡।\n]|[.](?=\S))*")
_CLAUSE = re.compile(r"[，；](?!\p{Nd})|[,;]\s+(?=\p{L}{2})")
_NUMBER_AND_WORD = re.compile(
    r"((?:\\?[$€£¥₹₴₽]\s?)?-?" + DIGITS + r")\s+(\p{L}[\p{L}\p{M}]*)(?=[\s,;])"
)
_HAN_KANA = r"[\p{Han}\p{Hiragana}\p{Katakana}]+"
_WORDS_THEN_NUMBER = re.compile(rf"{_HAN_KANA}(?<![负負下])((?:{DIGITS}){_HAN_KANA})")
"""A clause without spaces that says how many of what, and not that many below zero."""
_WHITE = re.compile(r"[\s*_:=]*")


def _after_phrase(text: str) -> str | None:
    """What the sentence after the last phrase says, without emphasis: a formula that it begins with, or its clause.

    Of a clause that begins with a number and goes on, the number and the next word: "42 because ..." ends there, and
    "3 million ..." or "42 or ..." is not the number alone.
    """
    text = text.translate(_FULL_WIDTH_SIGNS).replace("**", "")
    phrase = None
    for phrase in _PHRASE.finditer(text):  # noqa: B007
        pass
    if phrase is None:
        return None
    start = _WHITE.match(text, phrase.end()).end()
    formula = _FORMULA.match(text, start)
    if formula:
        return next(filter(None, formula.groups())).strip()
    clause = _SENTENCE.match(text, start)[0].strip()
    number = _NUMBER_AND_WORD.match(clause)
    if number and not is_multiplier(number[2]):
        return f"{number[1]} {number[2]}"
    cut = _CLAUSE.search(clause) if _NUMBER_FIRST.match(clause) else None
    if cut and not is_multiplier(clause[cut.end() :]):
        clause = clause[: cut.start()]
    return clause or None


_NUMBER_FIRST = re.compile(r"\D{0,2}\p{Nd}")
_LAST_NUMBER = re.compile(
    rf"""(?<![\p{{L}}\p{{Nd}}_^.,\\{{])(?:(?<![\p{{L}}\p{{Nd}})}}])[-−])?
    (?:\\[dt]?frac\s*\{{-?\d+\}}\s*\{{-?\d+\}} | (?:{DIGITS})(?:\^\{{?-?\d+\}}?)?(?:/\d+)?(?:\s?\\?%)?)""",
    re.VERBOSE,
)  # fmt: skip


def _last_number(text: str) -> str | None:
    number = None
    for number in _LAST_NUMBER.finditer(text):  # noqa: B007
        pass
    return number[0] if number else None
