r"""Checks the language rewards on real texts; prints tables, and exits with 1 if a bar is missed.

    python -m tools.check_language --data DIR

DIR holds MGSM's files (mgsm_ru.tsv: question, tab, number) and gsm8k_test.jsonl. The bars:

- files: a file's questions score at least 0.97 in their own language and at most 0.03 in any other
- mixes: half-and-half mixes are within 0.05 of the true share of words
- noise: LaTeX, digits and code move no score by more than 0.01
- speed: 2,000 texts a second on a core
"""

import argparse
import itertools
import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

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

# The bars; the table at the head says what each is for.
MIN_OWN_RATIO = 0.97
MAX_OTHER_RATIO = 0.03
MAX_MIX_ERROR = 0.05
MAX_NOISE_CHANGE = 0.01
MIN_TEXTS_PER_S = 2000

NOISES = (
    r"$x^2 + \frac{a}{b} = \sqrt{12}$",
    r"\( \text{total} = 3 \times 4 \)",
    "\\[\n\\sum_{i=1}^{n} i = \\frac{n(n+1)}{2}\n\\]",
    (
        r"\begin{aligned} ax + by &= c \\ "
        r"\text{speed} &= \frac{\text{distance}}{\text{time}} \end{aligned}"
    ),
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
"""What must not change a text's score, wherever it stands."""


class Corpus(NamedTuple):
    """The texts of one file, all in one language."""

    language: str
    texts: list[str]


def main() -> None:
    """Runs all checks and exits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="the folder with mgsm_*.tsv and gsm8k_test.jsonl",
    )
    corpora = read_corpora(parser.parse_args().data)
    # All of them run, so that one command shows everything that is missed.
    checks = (check_files, check_mixes, check_noise, check_speed)
    missed = [check.__name__ for check in checks if not check(corpora)]
    print(f"missed: {', '.join(missed)}" if missed else "all bars are met")
    sys.exit(bool(missed))


def read_corpora(folder: Path) -> dict[str, Corpus]:
    """Returns the corpus of each file, by the file's name. Exits if there is none."""
    corpora = {}
    for path in sorted(folder.glob("mgsm_*.tsv")):
        lines = path.read_text(encoding="utf-8").splitlines()
        questions = [line.split("\t")[0] for line in lines]
        corpora[path.stem] = Corpus(path.stem.removeprefix("mgsm_"), questions)
    solutions = folder / "gsm8k_test.jsonl"
    if solutions.exists():
        lines = solutions.read_text(encoding="utf-8").splitlines()
        corpora["gsm8k solutions"] = Corpus(
            "en", [json.loads(line)["answer"] for line in lines]
        )
    if not corpora:
        sys.exit(f"{folder} holds neither mgsm_*.tsv nor gsm8k_test.jsonl")
    return corpora


def ratio(text: str, language: str) -> float:
    """Returns the share of a text's words that are in a language."""
    return word_ratios(text, language).target


# --- Files ---


def check_files(corpora: dict[str, Corpus]) -> bool:
    """Prints each file's mean ratio in each language, and its worst texts.

    Returns True if the means meet the bars.
    """
    print("mean ratio of a file's texts in each language\n")
    print(f"{'file':16}" + "".join(f"{language:>7}" for language in LANGUAGES))
    all_met = True
    worst_texts = []
    for name, corpus in corpora.items():
        ratios = {
            language: [ratio(text, language) for text in corpus.texts]
            for language in LANGUAGES
        }
        means = {language: statistics.mean(ratios[language]) for language in LANGUAGES}
        print(
            f"{name:16}" + "".join(f"{means[language]:7.4f}" for language in LANGUAGES)
        )
        other_means = [
            mean for language, mean in means.items() if language != corpus.language
        ]
        # The bar is for the mean: single short questions can be of names and numbers alone.
        all_met &= (
            means[corpus.language] >= MIN_OWN_RATIO
            and max(other_means) <= MAX_OTHER_RATIO
        )
        worst_texts += _describe_worst(name, corpus, ratios)
    print("\n" + "\n".join(worst_texts) + "\n")
    return all_met


def _describe_worst(
    name: str, corpus: Corpus, ratios: dict[str, list[float]]
) -> list[str]:
    """Returns lines about the texts that miss a bar, and the two that are worst.

    ratios: by language, of each text
    """
    own = corpus.language
    own_ratios = ratios[own]
    # Of each text, its ratios in all other languages.
    other_ratios = zip(
        *(ratios[other] for other in LANGUAGES if other != own), strict=True
    )
    num_below = sum(value < MIN_OWN_RATIO for value in own_ratios)
    num_above = sum(max(values) > MAX_OTHER_RATIO for values in other_ratios)
    lines = [
        f"{name}: of {len(corpus.texts)} texts {num_below} below {MIN_OWN_RATIO} in {own}, "
        f"{num_above} above {MAX_OTHER_RATIO} in another"
    ]
    by_ratio = sorted(zip(own_ratios, corpus.texts, strict=True))
    for value, text in by_ratio[: min(2, num_below)]:
        lines.append(f"    {value:.2f} {text[:160]!r}")
    return lines


# --- Mixes ---


def check_mixes(corpora: dict[str, Corpus]) -> bool:
    """Compares mixes of two files' texts with the true share of words.

    Each mix is a text of one file followed by a text of another, whose words are also counted
    apart. Prints the mean and the greatest difference of each pair of files.

    Returns True if all means are within the bar.
    """
    print(
        "half-and-half mixes: mean |ratio - true share|, greatest, share of mixes within the bar\n"
    )
    all_met = True
    for first_name, second_name in itertools.permutations(corpora, 2):
        first = corpora[first_name]
        second = corpora[second_name]
        if first.language == second.language:
            continue
        # MGSM's files are translations of each other: backwards, other questions are paired.
        pairs = zip(first.texts, reversed(second.texts), strict=False)
        errors = [_mix_error(a, first.language, b, second.language) for a, b in pairs]
        mean = statistics.mean(errors)
        share_within = statistics.mean(error <= MAX_MIX_ERROR for error in errors)
        all_met &= mean <= MAX_MIX_ERROR
        names = f"{first_name:>16} + {second_name:16}"
        print(f"{names} {mean:7.4f} {max(errors):7.4f} {share_within:7.1%}")
    print()
    return all_met


def _mix_error(
    first: str, first_language: str, second: str, second_language: str
) -> float:
    """Returns how far the mix's ratio in the first language is from the true share."""
    num_first = word_ratios(first, first_language).words
    num_second = word_ratios(second, second_language).words
    # Counted apart, each text in its own language, so that no choice between languages is made.
    true_share = num_first / (num_first + num_second)
    return abs(ratio(f"{first}\n{second}", first_language) - true_share)


# --- Noise ---


def check_noise(corpora: dict[str, Corpus]) -> bool:
    """Prints the greatest change of a text's score by each noise, inside the text and behind it.

    Returns True if no change is greater than the bar.
    """
    print("greatest change of a score by noise inside the text\n")
    changes = dict.fromkeys(NOISES, 0.0)
    for language, texts in corpora.values():
        for text, noise in itertools.product(texts[:50], NOISES):
            own_change = _change(text, noise, language)
            # Formulas and code look like English: that ratio must not move either.
            english_change = _change(text, noise, "en")
            changes[noise] = max(changes[noise], own_change, english_change)
    for noise, change in changes.items():
        print(f"{change:8.4f} {noise!r}")
    print()
    return max(changes.values()) <= MAX_NOISE_CHANGE


def _change(text: str, noise: str, language: str) -> float:
    # Between words or, where a script has no spaces, between sentences.
    matches = re.finditer(r"\s|[。？！、，]", text)  # noqa: RUF001
    breaks = [match.end() for match in matches] or [len(text)]
    middle = breaks[len(breaks) // 2]
    noisy_text = f"{text[:middle]} {noise} {text[middle:]} {noise}"
    return abs(ratio(noisy_text, language) - ratio(text, language))


# --- Speed ---


def check_speed(corpora: dict[str, Corpus]) -> bool:
    """Prints how many texts are scored in a second of processor time, in the best of three runs.

    A file's texts are all different, so the cache of counts is of no use.

    Returns True if all files meet the bar.
    """
    print("texts a second on a core\n")
    all_met = True
    for name, corpus in corpora.items():
        seconds = min(_seconds_to_score(corpus) for _ in range(3))
        texts_per_s = len(corpus.texts) / seconds
        mean_length = statistics.mean(map(len, corpus.texts))
        print(f"{name:16} {texts_per_s:8,.0f}   mean length {mean_length:.0f}")
        all_met &= texts_per_s >= MIN_TEXTS_PER_S
    print()
    return all_met


def _seconds_to_score(corpus: Corpus) -> float:
    begin = time.process_time()
    for text in corpus.texts:
        ratio(text, corpus.language)
    return time.process_time() - begin


if __name__ == "__main__":
    main()
