r"""Does the language measure hold on real text? Tables, and exit code 1 where a bar is missed.

    python -m tools.check_language --data DIR

DIR holds MGSM's files (mgsm_ru.tsv: question, tab, number) and gsm8k_test.jsonl. The bars: a file's questions score at
least 0.97 in their own language and at most 0.03 in any other; half-and-half mixes are within 0.05 of the true share of
words; LaTeX, digits and code move no score by more than 0.01; 2,000 texts a second on a core.
"""

import argparse
import itertools
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from jaxgrpo.rewards.languages.consistency import word_ratios

LANGUAGES = [
    "en",
    "zh",
    "ja",
    "ko",
    "uk",
    "ru",
    "th",
    "de",
    "fr",
    "es",
    "sw",
    "te",
    "bn",
    "vi",
    "ar",
    "hi",
]
OWN, OTHER, MIX, NOISE, SPEED = 0.97, 0.03, 0.05, 0.01, 2000

NOISES = (
    r"$x^2 + \frac{a}{b} = \sqrt{12}$",
    r"\( \text{total} = 3 \times 4 \)",
    "\\[\n\\sum_{i=1}^{n} i = \\frac{n(n+1)}{2}\n\\]",
    r"\begin{aligned} ax + by &= c \\ \text{speed} &= \frac{\text{distance}}{\text{time}} \end{aligned}",
    r"\boxed{42}",
    r"\frac{3}{4} \times 12 \approx 9",
    "1,234.56",
    "12 + 7 * 3 = 33",
    "<<3*4=12>>",
    "2x + 3y = 5 km",
    "```python\ntotal = sum(price for price in prices)\nprint('total', total)\n```",
    "`average = total / count`",
    "https://example.com/page?name=value",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="the folder with mgsm_*.tsv and gsm8k_test.jsonl"
    )
    files = read(parser.parse_args().data)
    missed = [
        check.__name__
        for check in (check_files, check_mixes, check_noise, check_speed)
        if not check(files)
    ]
    print(f"missed: {', '.join(missed)}" if missed else "all bars are met")
    sys.exit(bool(missed))


def read(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """{file: (language, texts)}"""
    files = {}
    for path in sorted(folder.glob("mgsm_*.tsv")):
        questions = [line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()]
        files[path.stem] = (path.stem.removeprefix("mgsm_"), questions)
    solutions = folder / "gsm8k_test.jsonl"
    if solutions.exists():
        lines = solutions.read_text(encoding="utf-8").splitlines()
        files["gsm8k solutions"] = ("en", [json.loads(line)["answer"] for line in lines])
    if not files:
        sys.exit(f"{folder} holds neither mgsm_*.tsv nor gsm8k_test.jsonl")
    return files


def ratio(text: str, language: str) -> float:
    return word_ratios(text, language).target


def check_files(files: dict[str, tuple[str, list[str]]]) -> bool:
    """Each file's mean ratio in each language; the worst texts in their own and in another."""
    print("mean ratio of a file's texts in each language\n")
    print(f"{'file':16}" + "".join(f"{language:>7}" for language in LANGUAGES))
    met, worst = True, []
    for name, (own, texts) in files.items():
        values = {language: [ratio(text, language) for text in texts] for language in LANGUAGES}
        means = {language: statistics.mean(values[language]) for language in LANGUAGES}
        print(f"{name:16}" + "".join(f"{means[language]:7.4f}" for language in LANGUAGES))
        met &= means[own] >= OWN and all(
            mean <= OTHER for language, mean in means.items() if language != own
        )
        below = sum(value < OWN for value in values[own])
        above = sum(
            max(values[x][i] for x in LANGUAGES if x != own) > OTHER for i in range(len(texts))
        )
        worst.append(
            f"{name}: of {len(texts)} texts {below} below {OWN} in {own}, {above} above {OTHER} in another"
        )
        for value, text in sorted(zip(values[own], texts, strict=True))[: min(2, below)]:
            worst.append(f"    {value:.2f} {text[:160]!r}")
    print("\n" + "\n".join(worst) + "\n")
    return met


def check_mixes(files: dict[str, tuple[str, list[str]]]) -> bool:
    """A text of one file after a text of another, against their words counted apart: mean and greatest difference."""
    print(
        "half-and-half mixes: mean |ratio - true share|, greatest, share of mixes within the bar\n"
    )
    met = True
    pairs = [(a, b) for a, b in itertools.permutations(files, 2) if files[a][0] != files[b][0]]
    for a, b in pairs:
        (language, first), (other, second) = files[a], files[b]
        errors = [
            _mix_error(x, language, y, other) for x, y in zip(first, reversed(second), strict=False)
        ]
        within = statistics.mean(error <= MIX for error in errors)
        met &= statistics.mean(errors) <= MIX
        print(f"{a:>16} + {b:16} {statistics.mean(errors):7.4f} {max(errors):7.4f} {within:7.1%}")
    print()
    return met


def _mix_error(first: str, language: str, second: str, other: str) -> float:
    words, others = word_ratios(first, language).words, word_ratios(second, other).words
    return abs(ratio(f"{first}\n{second}", language) - words / (words + others))


def check_noise(files: dict[str, tuple[str, list[str]]]) -> bool:
    """The greatest change of a text's score by each piece of noise, between its words or sentences."""
    print("greatest change of a score by noise inside the text\n")
    changes = dict.fromkeys(NOISES, 0.0)
    for language, texts in files.values():
        for text, noise in itertools.product(texts[:50], NOISES):
            changes[noise] = max(
                changes[noise], _change(text, noise, language), _change(text, noise, "en")
            )
    for noise, change in changes.items():
        print(f"{change:8.4f} {noise!r}")
    print()
    return max(changes.values()) <= NOISE


def _change(text: str, noise: str, language: str) -> float:
    places = [match.end() for match in re.finditer(r"\s|[。？！、，]", text)] or [len(text)]  # noqa: RUF001
    middle = places[len(places) // 2]
    return abs(
        ratio(f"{text[:middle]} {noise} {text[middle:]} {noise}", language) - ratio(text, language)
    )


def check_speed(files: dict[str, tuple[str, list[str]]]) -> bool:
    """Texts a second of processor time, all different: nothing is counted once and used again."""
    print("texts a second on a core\n")
    met = True
    for name, (language, texts) in files.items():
        best = min(_seconds(lambda: [ratio(text, language) for text in texts]) for _ in range(3))  # noqa: B023
        print(
            f"{name:16} {len(texts) / best:8,.0f}   mean length {statistics.mean(map(len, texts)):.0f}"
        )
        met &= len(texts) / best >= SPEED
    print()
    return met


def _seconds(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


if __name__ == "__main__":
    main()
