"""How much of a reference text does the completion say, in its order?"""

from dataclasses import dataclass

from rapidfuzz.distance import LCSseq

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem
from jaxgrpo.rewards import prose
from jaxgrpo.rewards.languages.words import split
from jaxgrpo.rewards.prose import PARTS


@dataclass(frozen=True)
class RougeL:
    """A reward from 0.0 to 1.0: the F1 of ROUGE-L (Lin 2004), as for training on whole summaries (arXiv 1909.08752).

        2 L / (words of the completion + words of the reference), L: words of their longest common subsequence

    Words are what Unicode's word segmentation and ICU's dictionaries say (see words.split), in any language, without regard
    to case, and not stemmed; numbers are words, signs are none. 0.0 where either has no word.

    The subsequence is RapidFuzz's, exact and of 64 words at a time: texts of words.MAX_WORDS words, where reading ends, take
    tenths of a second. Google's rouge-score fills a table in Python, drops all letters but a-z, and needs NLTK.

    People may think little of what it rates highly (arXiv 1909.01214): look at what is written, not at it alone.

    part: what is read of a completion: think, answer (all of it where there is no think block) or all
    reference: the field of Problem.meta that holds the reference; empty: problem.answer
    """

    part: str = "answer"
    reference: str = ""

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise UserError(f"part is {self.part!r}: it must be one of {', '.join(PARTS)}")

    def __call__(self, problem: Problem, text: str) -> float:
        wanted = problem.meta[self.reference] if self.reference else problem.answer
        return rouge_l(prose.part(text, self.part), wanted)


def rouge_l(text: str, reference: str) -> float:
    """The F1 of the longest common subsequence of two texts' words."""
    first, second = _words(text), _words(reference)
    if not first or not second:
        return 0.0
    return 2 * LCSseq.similarity(first, second) / (len(first) + len(second))


def _words(text: str) -> list[str]:
    return [word for word in split(text) if any(map(str.isalnum, word))]
