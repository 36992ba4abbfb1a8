"""Which completions of a problem give the same answer, for majority votes."""

import re
from dataclasses import dataclass

from jaxgrpo.problems import Completion, Problem, batched
from jaxgrpo.rewards.maths.extraction import DEFAULT_METHODS, extract_answer
from jaxgrpo.rewards.maths.verifier import Accuracy, accuracy, same_answer
from jaxgrpo.scores import NO_VOTE

_PLAIN = re.compile(r"-?[0-9]{1,15}")


@batched
@dataclass(frozen=True)
class Votes:
    """Numbers the answers of a problem's completions, the same number for the same answer.

    The number is the index of the first completion with that answer, by `verifier.same_answer`;
    NO_VOTE without an answer. It is called as a batched reward is, since it may take as long.

    extract: where the answer may stand
    tolerance: how far a number may be off
    """

    extract: tuple[str, ...] = DEFAULT_METHODS
    tolerance: float = 0.0

    def __call__(self, problem: Problem, texts: list[Completion]) -> list[float]:
        # The vote of each answer as it is written: the same text costs no algebra.
        written: dict[str, float] = {}
        for index, text in enumerate(texts):
            answer = self.read(text)
            if answer is not None and answer not in written:
                written[answer] = self._vote(answer, written, problem.language, index)
        return [written.get(self.read(text) or "", NO_VOTE) for text in texts]

    def plain(self, texts: list[Completion]) -> list[float] | None:
        """Returns the votes where all answers are plain whole numbers, at once; else None.

        They need no algebra, and so no worker process.
        """
        answers = [self.read(text) for text in texts]
        if self.tolerance or not all(map(_is_plain, answers)):
            return None
        firsts: dict[int, float] = {}
        return [
            NO_VOTE if answer is None else firsts.setdefault(int(answer), float(index))
            for index, answer in enumerate(answers)
        ]

    def read(self, text: str) -> str | None:
        """Returns the answer of a completion; None if there is none."""
        return extract_answer(text, self.extract) or None

    def _vote(
        self, answer: str, written: dict[str, float], language: str, index: int
    ) -> float:
        """Returns the vote of the first answer that this one equals; else `index`."""
        # The first answer of each vote stands for all of them.
        firsts: dict[float, str] = {}
        for other, vote in written.items():
            firsts.setdefault(vote, other)
        for vote, other in firsts.items():
            if same_answer(answer, other, language, self.tolerance):
                return vote
        return float(index)


def _is_plain(answer: str | None) -> bool:
    """Returns whether an answer is a whole number in ASCII digits, or there is none."""
    return answer is None or _PLAIN.fullmatch(answer) is not None


def votes_of(reward: object) -> Votes | None:
    """Returns the votes that go with a reward; None for one that does not compare answers."""
    if reward is accuracy:
        return Votes()
    if isinstance(reward, Accuracy):
        return Votes(reward.extract, reward.tolerance)
    return None
