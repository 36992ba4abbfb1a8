"""A reward for saying what a reference text says, in its order."""

from dataclasses import dataclass

from rapidfuzz.distance import LCSseq

from jaxgrpo.errors import check_choice
from jaxgrpo.problems import Problem
from jaxgrpo.rewards import prose
from jaxgrpo.rewards.languages.words import split
from jaxgrpo.rewards.prose import PARTS


@dataclass(frozen=True)
class RougeL:
    """A reward from 0.0 to 1.0: the F1 of ROUGE-L (Lin 2004) against a reference.

        2 L / (words of the completion + words of the reference)

    L is the number of words of their longest common subsequence. Training on whole summaries uses
    the same (arXiv 1909.08752). Words are those of Unicode's word segmentation and ICU's
    dictionaries (see `words.split`), in any language, without regard to case, and not stemmed;
    numbers are words, signs are not. The reward is 0.0 where either text has no word.

    RapidFuzz computes the subsequence, exactly and 64 words at a time: texts of words.MAX_WORDS
    words, where reading ends, take tenths of a second. Google's rouge-score fills a table in
    Python, drops all letters but a-z, and needs NLTK.

    People may think little of texts that it rates highly (arXiv 1909.01214): read them, too.

    part: what is read of a completion: think, answer (all of it without a think block) or all
    reference: the field of Problem.meta that holds the reference; empty: problem.answer
    """

    part: str = "answer"
    reference: str = ""

    def __post_init__(self) -> None:
        check_choice("part", self.part, PARTS)

    def __call__(self, problem: Problem, text: str) -> float:
        # A problem without the field raises KeyError: the verdict is missing then, and not 0.
        reference = problem.meta[self.reference] if self.reference else problem.answer
        return rouge_l(prose.part(text, self.part), reference)


def rouge_l(text: str, reference: str) -> float:
    """Returns the F1 of the longest common subsequence of two texts' words."""
    text_words = _words(text)
    reference_words = _words(reference)
    if not text_words or not reference_words:
        return 0.0
    num_common = LCSseq.similarity(text_words, reference_words)
    return 2 * num_common / (len(text_words) + len(reference_words))


def _words(text: str) -> list[str]:
    return [word for word in split(text) if any(map(str.isalnum, word))]
