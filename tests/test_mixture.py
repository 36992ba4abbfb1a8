"""Laws of mixtures: shares, passes, resuming; and of what is left out of them."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from jaxgrpo.config import overrides
from jaxgrpo.data.mixture import MixedProblems, Mixture, Part
from jaxgrpo.data.order import ProblemOrder, ProblemStream
from jaxgrpo.data.overlap import Decontaminated
from jaxgrpo.data.table import Table
from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem, Problems, notes_of


@dataclass
class Given:
    """A source of given problems."""

    training: Problems
    held: Problems = ()

    def train(self) -> Problems:
        return self.training

    def heldout(self) -> Problems:
        return self.held


def problems(count: int, **how) -> list[Problem]:
    return [Problem(str(i), f"What is {i}?", str(i), **how) for i in range(count)]


def mixed(sizes: Sequence[int], weights: Sequence[float]) -> MixedProblems:
    parts = {
        f"part{i}": Part(Given(problems(size)), weight)
        for i, (size, weight) in enumerate(zip(sizes, weights, strict=True))
    }
    return Mixture(parts).train()


def ids(found: Sequence[Problem]) -> list[str]:
    return [problem.id for problem in found]


def parts_of(found: Sequence[Problem]) -> Counter:
    return Counter(problem.meta["part"] for problem in found)


def the_error(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


# Order

MIXTURES = [
    ((7, 20), (0.3, 0.7)),
    ((50, 3, 11), (0.8, 0.15, 0.05)),
    ((5, 5, 5), (1.0, 1.0, 1.0)),
    ((9,), (0.25,)),
    ((30, 10), (0.3, 0.1)),
]


@pytest.mark.parametrize(("sizes", "weights"), MIXTURES)
@pytest.mark.parametrize("count", [1, 10, 300])
def test_parts_are_asked_in_proportion_to_their_weights(sizes, weights, count):
    """Within two problems: they take turns, so that there is no error of sampling."""
    order = ProblemOrder(mixed(sizes, weights), seed=0)
    asked = parts_of(order.take(count))
    for i, weight in enumerate(weights):
        assert abs(asked[f"part{i}"] - count * weight / sum(weights)) <= 2


@pytest.mark.parametrize(("sizes", "weights"), MIXTURES)
def test_each_part_has_passes_of_its_own(sizes, weights):
    """Nothing of a part is repeated, or left out, before the part is at its end."""
    order = ProblemOrder(mixed(sizes, weights), seed=1)
    asked: dict[str, list[str]] = {f"part{i}": [] for i in range(len(sizes))}
    while any(len(asked[f"part{i}"]) < 3 * size for i, size in enumerate(sizes)):
        (problem,) = order.take(1)
        asked[problem.meta["part"]].append(problem.id)
    for i, size in enumerate(sizes):
        part = asked[f"part{i}"]
        passes = [part[k * size : (k + 1) * size] for k in range(3)]
        assert all(len(set(one)) == size for one in passes)
        assert size < 5 or passes[0] != passes[1] != passes[2]


def test_by_their_sizes_three_passes_ask_each_problem_three_times():
    sizes = (12, 30, 6)
    order = ProblemOrder(mixed(sizes, [float(size) for size in sizes]), seed=2)
    counts = Counter(ids(order.take(3 * sum(sizes))))
    assert len(counts) == sum(sizes)
    assert set(counts.values()) == {3}
    assert order.epoch == 3


@pytest.mark.parametrize("stop", [0, 1, 13, 27, 60, 81])
def test_a_mixture_resumed_goes_on_as_if_it_had_never_stopped(stop):
    def new() -> ProblemOrder:
        return ProblemOrder(mixed((7, 20), (0.3, 0.7)), seed=3)

    whole = ids(new().take(120))
    first = new()
    before = ids(first.take(stop))
    resumed = new()
    resumed.restore(json.loads(json.dumps(first.state())))
    assert before + ids(resumed.take(120 - stop)) == whole


def test_what_was_launched_and_not_used_is_asked_again():
    order = ProblemOrder(mixed((7, 20), (0.3, 0.7)), seed=3)
    whole = ids(ProblemOrder(mixed((7, 20), (0.3, 0.7)), seed=3).take(20))
    stream = ProblemStream(order, accepts=lambda problem: True)
    assert [next(stream).id for _ in range(9)] == whole[:9]
    stream.mark_used(4)
    resumed = ProblemOrder(mixed((7, 20), (0.3, 0.7)), seed=9)
    with pytest.raises(UserError, match="seed=3"):
        resumed.restore(order.state())
    stream.rewind()
    assert [next(stream).id for _ in range(16)] == whole[4:]


def test_parts_of_one_size_are_not_in_one_order():
    order = ProblemOrder(mixed((40, 40), (1.0, 1.0)), seed=0)
    asked: dict[str, list[str]] = {"part0": [], "part1": []}
    for problem in order.take(80):
        asked[problem.meta["part"]].append(problem.answer)
    assert sorted(asked["part0"]) == sorted(asked["part1"])
    assert asked["part0"] != asked["part1"]


def test_a_mixture_is_a_sequence():
    all_problems = mixed((2, 3), (1.0, 1.0))
    assert ids(all_problems) == ["part0/0", "part0/1", "part1/0", "part1/1", "part1/2"]
    assert all_problems[-1] == all_problems[4]
    assert all_problems[-1].meta == {"part": "part1"}
    assert ids(all_problems[1:3]) == ["part0/1", "part1/0"]
    with pytest.raises(IndexError):
        all_problems[5]


# Parts

MANY = [
    Problem(
        f"{language}{level}",
        "?" * (10 * level),
        "1",
        language=language,
        level=level,
    )
    for language in ("en", "ko", "pt")
    for level in (1, 2, 3)
]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, "en1 en2 en3 ko1 ko2 ko3 pt1 pt2 pt3"),
        ({"languages": ("Korean", "pt-BR")}, "ko1 ko2 ko3 pt1 pt2 pt3"),
        ({"min_level": 3}, "en3 ko3 pt3"),
        ({"max_level": 1}, "en1 ko1 pt1"),
        ({"min_level": 2, "max_level": 2, "languages": ("en",)}, "en2"),
        ({"min_chars": 20, "max_chars": 29}, "en2 ko2 pt2"),
        ({"min_chars": 21}, "en3 ko3 pt3"),
        ({"max_chars": 10}, "en1 ko1 pt1"),
    ],
)
def test_a_part_is_selected_by_language_level_and_length(how, expected):
    source = Mixture({"p": Part(Given(MANY, MANY), **how)})
    wanted = [f"p/{name}" for name in expected.split()]
    assert ids(source.train()) == wanted
    assert ids(source.heldout()) == wanted


def test_languages_of_one_source_may_have_weights_of_their_own():
    source = Given(MANY)
    parts = {
        "english": Part(source, 0.25, languages=("en",)),
        "korean": Part(source, 0.75, languages=("ko",)),
    }
    asked = ProblemOrder(Mixture(parts).train(), seed=0).take(40)
    assert Counter(problem.language for problem in asked) == {"en": 10, "ko": 30}


def test_held_out_problems_take_turns_also_of_a_part_that_is_not_trained_on():
    parts = {
        "a": Part(Given(problems(3), problems(3))),
        "b": Part(Given(problems(3), problems(1)), weight=0.0),
        "c": Part(Given(problems(3), problems(2))),
    }
    source = Mixture(parts)
    assert ids(source.heldout()) == ["a/0", "b/0", "c/0", "a/1", "c/1", "a/2"]
    assert set(parts_of(source.train())) == {"a", "c"}


def test_a_run_begins_with_what_is_mixed():
    source = Mixture(
        {"a": Part(Given(problems(1200)), 3.0), "b": Part(Given(problems(9)))}
    )
    assert notes_of(source) == []
    source.train()
    assert notes_of(source) == [
        "training problems: 0.75 a (1,200 problems), 0.25 b (9 problems)"
    ]


def test_parts_are_settings():
    source = Mixture({"a": Part(Table()), "b": Part(Table(), 0.5)})
    flags = ["--config.parts.b.weight=0.25", "--config.parts.b.source.path=b.csv"]
    changed = overrides.override(source, flags)
    assert (changed.parts["b"].weight, changed.parts["b"].source.path) == (
        0.25,
        "b.csv",
    )
    described = overrides.describe(changed)
    assert described["parts"]["b"]["weight"] == 0.25
    # What a source has found is no setting.
    assert set(described) == {"class", "parts"}


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"a": Part(Table())}, "set --config.data.parts.a.source.path=train.jsonl"),
        (
            {"a": Part(Given(problems(1)), weight=-1.0)},
            "parts.a.weight is -1.0: it must be 0",
        ),
        ({"a": Part(Given(problems(1)), weight=float("nan"))}, "parts.a.weight is nan"),
        (
            {"a": Part(Given(problems(1)), weight=0.0)},
            "no part of the mixture has a weight",
        ),
        ({}, "no part of the mixture has a weight"),
        (
            {"a": Part(Given(MANY), min_level=4)},
            "the part a of the mixture has no problem",
        ),
        ({"a": Part(Given(MANY), languages=("xx",))}, "parts.a.languages has 'xx'"),
    ],
)
def test_mixtures_that_cannot_be_asked_are_refused(parts, says):
    assert says in the_error(Mixture(parts).train)


# Overlap

WORDS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
)


def asking(*prompts: str) -> list[Problem]:
    return [Problem(str(i), prompt, "1") for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize(
    ("prompt", "heldout", "overlaps"),
    [
        (f"Begin: {WORDS}.", f"{WORDS}?", True),
        (WORDS.upper(), WORDS.replace(" ", ", "), True),
        (f"zero {WORDS[: WORDS.index('fourteen')]} 14", f"{WORDS}?", True),
        # Twelve words in a row are not enough.
        (f"x {WORDS[: WORDS.index('thirteen')]} y", f"{WORDS}?", False),
        ("What is 1 + 1?", "What is 1+1", True),
        ("What is 1 + 1?", "What is 1 + 2?", False),
        ("What is 1 + 1?", f"What is 1 + 1? {WORDS}", False),
        (
            "珍妮特的鸭子每天下十六颗蛋。",
            "请问珍妮特的鸭子每天下十六颗蛋,多少钱?",
            True,
        ),
        ("珍妮特的鸭子每天下十六颗蛋。", "珍妮特的鸭子每天下七颗蛋。", False),
        ("사과 여섯 개가 있습니다", "사과 일곱 개가 있습니다", False),
    ],
)
def test_thirteen_words_in_a_row_are_an_overlap(prompt, heldout, overlaps):
    given = Given(asking(prompt, "Something else?"), asking("Another?", heldout))
    source = Decontaminated(given)
    left = source.train()
    assert [problem.prompt for problem in left] == (
        ["Something else?"] if overlaps else [prompt, "Something else?"]
    )
    assert source.heldout() == given.held
    first = ", 0 first" if overlaps else ""
    assert notes_of(source) == [
        f"{int(overlaps)} of 2 training prompts share 13 words in a row with a held-out one{first}"
        "; they are left out"
    ]


def test_overlap_with_other_sets_may_be_counted_alone():
    evaluated = Given([], asking(f"See {WORDS}."))
    source = Decontaminated(
        Given(asking(WORDS, "Else?"), asking("?")), (evaluated,), remove=False
    )
    assert len(source.train()) == 2
    assert notes_of(source)[0].endswith("with a held-out one, 0 first; they stay")


def test_errors_name_the_settings_of_the_inner_source():
    source = Decontaminated(Mixture({"a": Part(Table())}))
    own = "set --config.data.source.parts.a.source.path=train.jsonl"
    assert the_error(source.train).endswith(own)
    assert the_error(source.heldout).endswith(own)
    other = Decontaminated(Given(asking("?")), (Given([]), Table()))
    assert "--config.data.evaluated.1.path" in the_error(other.train)
    assert "words is 0" in the_error(Decontaminated(Given([]), words=0).train)


def test_a_mixture_without_overlap_is_still_a_mixture():
    parts = {
        "a": Part(Given(asking(WORDS, "A?"), asking("Q?")), 3.0),
        "b": Part(Given(asking("B?", "C?"), asking(WORDS))),
    }
    source = Decontaminated(Mixture(parts))
    left = source.train()
    assert ids(left) == ["a/1", "b/0", "b/1"]
    assert parts_of(ProblemOrder(left, seed=0).take(40)) == {"a": 30, "b": 10}
    assert [note[:17] for note in notes_of(source)] == [
        "training problems",
        "1 of 4 training p",
    ]
