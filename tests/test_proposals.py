"""Laws of the order in which problems are asked: by the seed, by difficulty, by what was seen."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from jaxgrpo.config import Config, Filter, Order
from jaxgrpo.config.schema import NO_PROBLEMS
from jaxgrpo.data.mixture import MixedProblems
from jaxgrpo.data.order import ProblemOrder, ProblemStream
from jaxgrpo.data.pass_rates import problems_within, read_pass_rates
from jaxgrpo.data.ranked_order import RankedOrder
from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem
from jaxgrpo.rollout.difficulty import DifficultyFilter, History
from jaxgrpo.rollout.posterior import Posterior, chance_to_pass
from jaxgrpo.rollout.proposals import Proposals, Rests
from jaxgrpo.selection import collect_spec
from jaxgrpo.selection import make_order as order_of
from jaxgrpo.selection import make_proposals as proposals_of
from tests.tiny_rollouts import in_lockstep

BAND = DifficultyFilter("band", 0.25, 0.75)
PROBLEMS = [Problem(f"p{i}", f"prompt {i}", "1", level=1 + i % 4) for i in range(24)]


def ids(problems: Sequence[Problem]) -> list[str]:
    return [problem.id for problem in problems]


def make_proposals(by: str = "chance", rest: int = 0, **settings) -> Proposals:
    proposals = Proposals(
        by=by,
        group_size=8,
        history=History(),
        posterior=Posterior(decay=0.5, kind_weight=2.0),
        rests=Rests(0.9, rest),
        **settings,
    )
    proposals.begin(1, BAND)
    return proposals


def make_order(
    proposals: Proposals, window: int = 0, share: float = 1.0, review: float = 0.0
) -> RankedOrder:
    return RankedOrder(ProblemOrder(PROBLEMS, seed=5), proposals, window, share, review)


# 1. What is known of a problem.


def test_a_posterior_by_hand():
    """Two verdicts a step later count half, and those of its kind as one pseudo-verdict."""
    posterior = Posterior(1.0, 2.0, decay=0.5, kind_weight=1.0)
    first, other, stranger = PROBLEMS[0], PROBLEMS[4], PROBLEMS[1]
    assert posterior.beta(first, 1) == (1.0, 2.0)
    posterior.record(first, solved=3, judged=4, step=1)
    # Own: 3 and 1, halved. Kind: 1.5 and 0.5, scaled to 1 in all.
    assert posterior.beta(first, 2) == (1 + 1.5 + 0.75, 2 + 0.5 + 0.25)
    assert posterior.beta(other, 2) == (1 + 0.75, 2 + 0.25)
    assert posterior.beta(stranger, 2) == (1.0, 2.0)
    posterior.record(first, solved=0, judged=2, step=3)
    # 3/4 and 1/4 + 2 after step 3; half of it counts in step 4.
    own = (3 / 8, 9 / 8)
    kind = (own[0] / 1.5, own[1] / 1.5)
    assert posterior.beta(first, 4) == (1 + own[0] + kind[0], 2 + own[1] + kind[1])
    # Missing verdicts are none.
    posterior.record(stranger, solved=0, judged=0, step=3)
    assert posterior.beta(stranger, 4) == (1.0, 2.0)


def beta_binomial(solved: int, size: int, a: int, b: int) -> Fraction:
    """Returns the probability of so many solved, of whole parameters, as Polya's urn has it."""
    probability = Fraction(comb(size, solved))
    for n in range(size):
        of_colour = a + n if n < solved else b + n - solved
        probability *= Fraction(of_colour, a + b + n)
    return probability


@pytest.mark.parametrize("rule", ["band", "dapo", "off"])
def test_the_chance_to_pass_is_that_of_an_urn(rule):
    passes = replace(BAND, rule=rule)
    parameters = [(1.0, 1.0), (3.0, 2.0), (1.0, 20.0), (9.0, 1.0)]
    expected = [
        float(
            sum(
                beta_binomial(solved, 8, int(a), int(b))
                for solved in range(9)
                if passes.accepts(solved, 8)
            )
        )
        for a, b in parameters
    ]
    np.testing.assert_allclose(chance_to_pass(parameters, 8, passes), expected)


def test_problems_rest_for_longer_each_time():
    rests = Rests(retire=0.75, first=1)
    wakes = []
    for epoch, solved in [(0, 0), (2, 0), (5, 4), (10, 2), (11, 3)]:
        rests.record("p", solved, 4, epoch)
        wakes.append(rests.wakes_at("p"))
    # 0 and at least 3/4 are both of no use; after 2 of 4 it begins again.
    assert wakes == [2, 5, 10, 0, 13]
    rests.record("p", 0, 0, 13)  # no verdict says nothing
    assert rests.wakes_at("p") == 0
    never = Rests(retire=0.75, first=0)
    never.record("p", 0, 4, 0)
    assert never.wakes_at("p") == 0


# 2. The order that follows.


def test_by_difficulty_a_pass_rises_from_the_easiest():
    by_level = make_order(make_proposals("difficulty"))
    levels = [problem.level for problem in by_level.take(48)]
    assert levels == sorted(levels[:24]) * 2
    measured = {f"p{i}": i / 24 for i in range(20)}
    by_rate = make_order(make_proposals("difficulty", measured=measured)).take(24)
    assert ids(by_rate)[:20] == [f"p{i}" for i in reversed(range(20))]
    assert set(ids(by_rate)[20:]) == {"p20", "p21", "p22", "p23"}


def test_alike_problems_are_asked_in_the_order_of_the_seed():
    expected = ids(ProblemOrder(PROBLEMS, seed=5).take(40))
    for window in (0, 7):
        assert ids(make_order(make_proposals("seed"), window).take(40)) == expected


def test_by_estimate_and_by_chance():
    """p0 is solved, p1 sometimes, p2 never: the easiest is p0, the likeliest to pass p1."""
    orders = {}
    for by in ("estimate", "chance"):
        proposals = make_proposals(by)
        proposals.posterior.kind_weight = 0.0
        for problem, solved in zip(PROBLEMS, (8, 4, 0), strict=False):
            proposals.record(problem, solved, 8, step=1, epoch=0)
        proposals.begin(2, BAND)
        orders[by] = ids(make_order(proposals).take(24))
    assert orders["estimate"][0] == "p0"
    assert orders["estimate"][-1] == "p2"
    assert orders["chance"][0] == "p1"
    assert set(orders["chance"][-2:]) == {"p0", "p2"}


@pytest.mark.parametrize(
    ("window", "share", "review"), [(8, 0.5, 0.25), (7, 0.3, 0.0), (0, 0.25, 0.2)]
)
def test_no_problem_is_asked_twice_in_a_pass(window, share, review):
    """Whatever is learnt meanwhile, and whichever windows a pass has."""
    proposals = make_proposals(rest=1)
    order = make_order(proposals, window, share, review)
    by_pass: dict[int, Counter] = {}
    for step in range(1, 60):
        proposals.begin(step, BAND)
        for _ in range(3):
            epoch = order.epoch
            (problem,) = order.take(1)
            by_pass.setdefault(epoch, Counter())[problem.id] += 1
            solved = 2 * problem.level
            proposals.history.record(problem.id, solved, 8)
            proposals.record(problem, solved, 8, step, epoch)
    assert len(by_pass) > 5
    for asked in by_pass.values():
        assert set(asked.values()) == {1}
    # Those of level 4 are always solved: they are asked less and less.
    last = sorted(by_pass)[-4:-1]
    solved_out = [
        sum(PROBLEMS[int(name[1:])].level == 4 for name in by_pass[epoch])
        for epoch in last
    ]
    assert sum(solved_out) < len(last) * 24 * share / 4


def test_the_share_of_a_window_is_asked_and_review_is_part_of_it():
    """One of four that are asked is one that was asked least often."""
    proposals = make_proposals("difficulty")
    for problem in PROBLEMS:
        proposals.history.visits[problem.id] = (problem.level == 4 and 1) or 5
    asked = make_order(proposals, 0, share=0.5, review=0.25).take(12)
    levels = [problem.level for problem in asked]
    assert levels == [1] * 6 + [2] * 3 + [4] * 3
    assert len({problem.id for problem in asked}) == 12


@pytest.mark.parametrize("solved", [0, 8], ids=["unsolvable", "solved"])
def test_problems_never_end_though_all_rest(solved):
    proposals = make_proposals(rest=1)
    order = make_order(proposals, window=6)
    asked = Counter()
    while order.epoch < 8:
        epoch = order.epoch
        (problem,) = order.take(1)
        proposals.record(problem, solved, 8, len(asked) + 1, epoch)
        asked[epoch] += 1
    # One of each window of six where all rest.
    assert asked[0] == 24
    assert asked[1] == 4
    assert min(asked.values()) >= 4
    assert sum(asked.values()) < 8 * 24 / 2


# 3. What a checkpoint keeps.


def run_steps(steps: range, proposals: Proposals, order: RankedOrder) -> list[str]:
    """Asks problems with a look ahead, uses some of them, and learns what levels say."""
    stream = ProblemStream(order, lambda problem: problem.id != "p3")
    asked = []
    for step in steps:
        proposals.begin(step, BAND)
        ahead = [next(stream) for _ in range(5 + step % 3)]
        used = ahead[: 2 + step % 4]
        stream.mark_used(len(used))
        stream.rewind()
        for problem in used:
            solved = (problem.level * step) % 9
            proposals.history.record(problem.id, solved, 8)
            proposals.record(problem, solved, 8, step, order.epoch)
        asked += ids(used)
    return asked


SETTINGS = [
    ("seed", 0, 1.0, 1),
    ("difficulty", 0, 1.0, 0),
    ("estimate", 5, 1.0, 0),
    ("chance", 9, 0.3, 1),
]


@pytest.mark.parametrize(("by", "window", "share", "rest"), SETTINGS)
def test_a_run_that_is_resumed_asks_as_the_uninterrupted_one(by, window, share, rest):
    """Through JSON, after any step, also in the middle of a window."""

    def new() -> tuple[Proposals, RankedOrder]:
        proposals = make_proposals(by, rest)
        return proposals, make_order(proposals, window, share, review=0.1)

    whole = run_steps(range(1, 11), *new())
    for stop in (3, 6):
        proposals, order = new()
        asked = run_steps(range(1, stop + 1), proposals, order)
        saved = json.loads(
            json.dumps([order.state(), proposals.history.state(), proposals.state()])
        )
        resumed, resumed_order = new()
        resumed_order.restore(saved[0])
        resumed.history.load(saved[1])
        resumed.load(saved[2])
        asked += run_steps(range(stop + 1, 11), resumed, resumed_order)
        assert asked == whole
        assert resumed.state() == json.loads(json.dumps(resumed.state()))


@pytest.mark.parametrize("num_processes", [2])
def test_all_processes_ask_the_same(monkeypatch, num_processes):
    def ask(process: int) -> list[str]:
        proposals = make_proposals(rest=1)
        return run_steps(range(1, 7), proposals, make_order(proposals, 8, 0.5, 0.1))

    asked = in_lockstep(monkeypatch, num_processes, ask)
    assert asked == [asked[0]] * num_processes


def test_another_run_s_order_is_refused():
    state = make_order(make_proposals(), 8).state()
    other = RankedOrder(ProblemOrder(PROBLEMS, seed=6), make_proposals())
    with pytest.raises(UserError, match="seed=5"):
        other.restore(state)


# 4. Difficulties that were measured once.


def test_measured_pass_rates(tmp_path):
    """An object of rates; or lines of verdicts, the last of a problem, without missing ones."""
    by_id = tmp_path / "rates.json"
    by_id.write_text('{\n"p0": 0.25,\n"p1": 1}\n')
    assert read_pass_rates(str(by_id)) == {"p0": 0.25, "p1": 1.0}
    rows = [("p0", 1, 8), ("p0", 2, 8), ("p1", 0, 0), ("p2", 3, 4)]
    lines = tmp_path / "rollouts.jsonl"
    lines.write_text(
        "".join(
            json.dumps({"step": 1, "id": name, "solved": solved, "judged": judged})
            + "\n"
            for name, solved, judged in rows
        )
    )
    assert read_pass_rates(str(lines)) == {"p0": 0.25, "p2": 0.75}


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", '{"p0": "x"}', "{}"])
def test_a_file_without_pass_rates_is_refused(tmp_path, text):
    path = tmp_path / "rates.json"
    path.write_text(text)
    with pytest.raises(UserError, match="it must hold one JSON object"):
        read_pass_rates(str(path))


def test_the_offline_filter_keeps_what_was_measured_within_both_ends(tmp_path):
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"p0": 0.0, "p1": 0.25, "p2": 0.5, "p5": 0.75}))
    kept = problems_within(PROBLEMS, str(path), 0.25, 0.5)
    assert ids(kept) == ["p1", "p2"]
    assert problems_within(PROBLEMS, str(path), 0.0, 1.0) is PROBLEMS
    assert problems_within(PROBLEMS, "", 0.0, 1.0) is PROBLEMS
    with pytest.raises(UserError, match="of 24 problems 4 have a measured pass rate"):
        problems_within(PROBLEMS, str(path), 0.8, 0.9)
    mixed = MixedProblems({"a": PROBLEMS[:4], "b": PROBLEMS[4:8]}, [1.0, 3.0])
    path.write_text(json.dumps({"a/p1": 0.5, "b/p5": 0.5}))
    assert isinstance(problems_within(mixed, str(path), 0.2, 0.8), MixedProblems)
    assert len(problems_within(mixed, str(path), 0.2, 0.8)) == 2


# 5. A config brought to life.


def test_a_config_says_what_a_step_asks_and_in_which_order():
    plain = Config(data=NO_PROBLEMS, rewards={})
    assert proposals_of(plain, History()) is None
    assert isinstance(order_of(plain, PROBLEMS, None), ProblemOrder)
    spec = collect_spec(plain, 1, 0.0, 0.5, None)
    assert (spec.groups, spec.max_prompts) == (8, 32)
    assert (spec.early_stop, spec.ahead, spec.refill) == (None, 0, True)
    # A mask asks one prompt for each group, whatever the bound of a refill.
    mask = replace(plain, filter=Filter(refill=False))
    assert collect_spec(mask, 1, 0.0, 0.5, None).max_prompts == 8
    # By early stops alone nothing is asked in another order, but verdicts are remembered.
    early = replace(plain, filter=Filter(early_verdicts=2, ahead=1.5))
    proposals = proposals_of(early, History())
    assert isinstance(order_of(early, PROBLEMS, proposals), ProblemOrder)
    spec = collect_spec(early, 1, 0.0, 0.25, proposals)
    # A quarter is expected to pass, which counts as eight groups.
    assert spec.in_flight(kept=0, asked=0) == 32
    assert spec.in_flight(kept=6, asked=8) == math.ceil(1.5 * 2 / 0.5)
    assert spec.in_flight(kept=7, asked=31) == 1
    proposals.begin(2, spec.filter)
    proposals.record(PROBLEMS[0], 0, 8, step=1, epoch=0)
    solved, failed = spec.early_stop.prior(PROBLEMS[0])
    assert (solved, failed) == (1, pytest.approx(1 + 8 * 0.98 + 2))
    for changed in (Order(by="chance"), Order(rest=1)):
        ranked = replace(plain, order=changed)
        order = order_of(ranked, PROBLEMS, proposals_of(ranked, History()))
        assert isinstance(order, RankedOrder)
