# ruff: noqa: RUF001  (signs of Chinese and Japanese texts are meant)
"""Tests of the verifier of mathematics.

A table of verdicts, gold answers, settings, and texts that must do no harm.
"""

import json
import logging
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from math_cases import ANSWERS, TEXTS

from jaxgrpo.config.overrides import fields, override
from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem, Weighted
from jaxgrpo.rewards.layout import think_then_answer
from jaxgrpo.rewards.maths import verifier
from jaxgrpo.rewards.maths.extraction import extract_answer
from jaxgrpo.rewards.maths.symbolic import is_safe, same_expression
from jaxgrpo.rewards.maths.verifier import Accuracy, accuracy, same_answer
from jaxgrpo.rewards.workers.pool import Missing, Pool, reward_name
from jaxgrpo.rewards.workers.worker import find_reward
from tools import check_math

ALL = ("boxed", "hashes", "phrase", "number")


def problem(answer="42", language="en", **meta):
    return Problem("1", "question", answer, language, meta=meta)


def test_the_table_is_large_and_has_both_verdicts():
    cases = ANSWERS + TEXTS
    assert len(cases) >= 300
    num_right = sum(case[2] for case in cases)
    assert min(num_right, len(cases) - num_right) >= 100
    assert all(case[3] for case in cases)
    assert len({(case[0], case[1], case[4:]) for case in cases}) == len(cases)


def case_id(case):
    answer, gold, _, reason = case[:4]
    return f"{answer[:30]} for {gold[:30]}: {reason}".replace("::", ":")


@pytest.mark.parametrize("case", ANSWERS, ids=case_id)
def test_answers(case):
    answer, gold, right, _, *language = case
    text = rf"<think>So.</think> It is $\boxed{{{answer}}}$."
    assert accuracy(problem(gold, *language), text) == float(right)


@pytest.mark.parametrize("case", TEXTS, ids=case_id)
def test_texts(case):
    text, gold, right, _, extract, *language = case
    assert Accuracy(extract)(problem(gold, *language), text) == float(right)


def test_one_of_several_gold_answers_is_enough():
    golds = problem("1/3", other_answers=["0.33", "0.333"])
    assert (
        accuracy(golds, r"\boxed{0.33}")
        == accuracy(golds, r"\boxed{\frac{1}{3}}")
        == 1.0
    )
    assert accuracy(golds, r"\boxed{0.3}") == 0.0
    assert accuracy(problem("1/3", other_answers=0.5), r"\boxed{0.5}") == 1.0


GOLDS = [
    r"\boxed{19}",
    r"$\boxed{19}$",
    r"\[\boxed{19}\]",
    "$19$",
    r"\[19\]",
    r"We add 12 and 7. The answer is $\boxed{19}$.",
    r"\boxed{12} + \boxed{7} = \boxed{\boxed{19}}",
    "12 + 7 = <<12+7=19>>19\n#### 19",
    "#### 19",
    "<answer>19</answer>",
    r"<think>\boxed{3}</think><answer>\boxed{19}</answer>",
    "<think>12 + 7</think>19",
    "The answer is 19.",
    "We add 12 and 7. So she has 19. The answer is 19.",
    "Final Answer: The final answer is $19$. I hope it is correct.",
    "答案是19。",
    "उत्तर है 19",
    r"\fbox{19}",
    r"$\framebox{19}$",
    r"12 + 7 = \boxed 19.",
    r"So $x = \boxed 19$",
    r"\\boxed{19}",
    r"\boxed{19} \boxed{19}",
    "<solution>19</solution>",
    "<think>7</think><final_answer> 19 </final_answer>",
    r"<thought>\boxed{7}</thought>\boxed{19}",
    "**Final Answer**: 19",
    "【答案】19\n【解析】12 + 7 = 19",
    "故选：19",
    "解：12＋7＝19（个）\n答：一共有19个苹果。",
    "答え：合わせて19個です。",
    "Sumamos 12 y 7. La respuesta es 19 manzanas.",
]


@pytest.mark.parametrize("gold", GOLDS)
def test_a_gold_that_is_a_box_or_a_solution_is_read_as_an_answer(gold):
    for golds in (problem(gold), problem("1", other_answers=[gold, None])):
        assert accuracy(golds, r"\boxed{19}") == accuracy(golds, "#### 19") == 1.0
        assert accuracy(golds, r"\boxed{12}") == accuracy(golds, r"\boxed{7}") == 0.0
        assert accuracy(golds, r"\boxed{None}") == 0.0


@pytest.mark.parametrize(
    "gold", [r"\boxed{2} and \boxed{3}", r"$\boxed{2}$, $\boxed{3}$", r"\boxed{2, 3}"]
)
def test_a_gold_of_several_boxes_is_all_of_them(gold):
    assert accuracy(problem(gold), r"\boxed{2, 3}") == 1.0
    assert accuracy(problem(gold), r"\boxed{3}") == 0.0


@pytest.mark.parametrize(
    ("gold", "wrong"),
    [
        ("答：零下19度", "19"),
        ("答：负19", "19"),
        ("答：根号19", "19"),
        ("答：一共有3万元", "3"),
        ("The answer is ln 2.", "2"),
        (r"\fbox{19} or \fbox{20}", "20"),
    ],
)
def test_a_part_of_a_gold_is_not_the_gold(gold, wrong):
    assert accuracy(problem(gold), rf"\boxed{{{wrong}}}") == 0.0


AS_THEY_ARE = [
    "x = 3",
    "Monday",
    "उत्तर दिशा",
    r"\boxed{}",
    "The answer is unknown",
    "12 + 7 = 19",
    "",
    " 5 ",
]


@pytest.mark.parametrize("gold", AS_THEY_ARE)
def test_any_other_gold_stays_as_it_is(gold):
    assert verifier.gold_answers(problem(gold))[-1] == gold


def test_a_gold_in_words_may_be_the_sentence_or_what_it_says():
    for answer in ("Monday", "The answer is Monday."):
        assert accuracy(problem("The answer is Monday."), rf"\boxed{{{answer}}}") == 1.0


def test_zero_may_be_the_other_answer():
    assert accuracy(problem("1", other_answers=0), r"\boxed{0}") == 1.0


def test_a_tolerance_is_a_share_of_the_gold():
    near = Accuracy(tolerance=0.01)
    assert near(problem("4.5e33"), r"\boxed{4.54e33}") == 1.0
    assert near(problem("4.5e33"), r"\boxed{4.6e33}") == 0.0
    assert near(problem("0"), r"\boxed{0.001}") == 0.0
    assert near(problem("(1, 100)"), r"\boxed{(1.001, 99.5)}") == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"extract": ("box",)},
        {"extract": ()},
        {"tolerance": -1.0},
        {"tolerance": float("nan")},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UserError):
        Accuracy(**wrong)


def test_settings_are_named_on_the_command_line_and_reach_a_worker():
    rewards = override({"accuracy": Weighted(Accuracy())}, [])
    assert fields(rewards)["accuracy.function.extract"].doc.startswith(
        "where the answer may stand"
    )
    changed = override(
        rewards,
        [
            "--config.accuracy.function.extract=boxed,number",
            "--config.accuracy.function.tolerance=0.1",
        ],
    )
    assert changed["accuracy"].function == Accuracy(("boxed", "number"), 0.1)
    name = (
        "jaxgrpo.rewards.maths.verifier:Accuracy"
        '{"extract": ["boxed", "number"], "tolerance": 0.1}'
    )
    assert find_reward(name) == changed["accuracy"].function
    with pytest.raises(UserError, match="it must name some of boxed"):
        find_reward('jaxgrpo.rewards.maths.verifier:Accuracy{"extract": ["box"]}')


LANGUAGES = st.sampled_from(["en", "de", "uk", "hi", "ar", "zh", "xx"])
PIECES = r"""\boxed{ \frac{ \sqrt \left( \right) \{ \} \begin{pmatrix} \end{pmatrix}
    \\ & ^ ^{ _ { } ( ) [ ] ! % \% $ #### = < \le \pm \cup \infty \text{ \binom \pi \exp \sum_ \int
    , ; . : - + * / 9 99 1e9 0 7 x i e and or <think> </think> 答案是 उत्तर ४ ½ √ \ """
TEXT = st.one_of(
    st.text(max_size=80),
    st.lists(
        st.sampled_from([*PIECES.split(), " ", "\n", "the answer is "]), max_size=25
    ).map("".join),
)


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
@given(
    text=TEXT,
    gold=st.one_of(TEXT, st.sampled_from(["42", r"\frac{1}{2}", r"\{1,2\}", "x^2+1"])),
    language=LANGUAGES,
)
def test_whatever_is_written_the_score_is_a_number_from_0_to_1(text, gold, language):
    before = time.monotonic()
    for written in (text, rf"\boxed{{{text}}}", f"<think>{text}</think>\n#### {text}"):
        assert Accuracy(ALL)(problem(gold, language), written) in (0.0, 1.0)
        assert accuracy(problem(gold, language), written) in (0.0, 1.0)
        assert think_then_answer(problem(gold, language), written) in (0.0, 1.0)
    assert time.monotonic() - before < 10


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.fractions(max_denominator=1000), st.sampled_from(["en", "de", "uk", "hi"]))
def test_a_number_is_itself_in_every_form_and_is_not_the_next(value, language):
    forms = [str(value), rf"\frac{{{value.numerator}}}{{{value.denominator}}}"]
    assert all(same_answer(form, gold, language) for form in forms for gold in forms)
    assert not same_answer(str(value + 1), str(value), language)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.integers(min_value=-(10**12), max_value=10**12))
def test_thousands_in_the_styles_of_languages(value):
    english = f"{value:,}"
    for language, sign in {"en": ",", "de": ".", "fr": "\u202f", "uk": "\xa0"}.items():
        written = english.replace(",", sign)
        assert same_answer(written, str(value), language)
        assert not same_answer(written, str(10 * value + 1), language)


BOMBS = [
    "9**9**9",
    "9^{9^{9}}",
    r"\frac{9^{99999}}{7}+\sqrt{2}",
    "((9!)!)!",
    r"\gcd(9^{9^9},3)",
    r"\sin(9^{9^{9}})",
    r"\begin{pmatrix}9^{9^9}\\1\end{pmatrix}",
    "[0, 9^{9^9}]",
    "x=9^{9^9}",
    r"\{1\pm 9^{9^9}\}",
    r"e^{e^{e^{e^{9}}}}",
    "(a+b+c+d+e+f)^{99}-(a+b+c+d+e+g)^{99}",
    r"\sqrt{2}^{\sqrt{2}^{\sqrt{2}^{99}}}",
    "+".join(f"{n}^{{{n}}}" for n in range(90, 120)),
    "(" * 400 + ")" * 400,
    r"\frac{1}{" * 50 + "2" + "}" * 50,
    r"\boxed{" * 10_000,
    "1," * 100_000,
    r"\pm" * 20_000,
    "$" * 50_000,
    "the answer is " * 20_000,
    "1 234" * 20_000,
    "٤" * 50_000,
]


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb[:20])
@pytest.mark.parametrize("gold", ["42", r"\frac{\sqrt{2}}{2}x"])
def test_nothing_blows_up(bomb, gold):
    same_expression(
        "x", "x + 1"
    )  # imports math-verify, whose half second is not meant here
    before = time.monotonic()
    assert Accuracy(ALL)(problem(gold), rf"\boxed{{{bomb}}}") == 0.0
    Accuracy(ALL)(problem(gold), bomb)
    assert time.monotonic() - before < 3


def test_the_guard_lets_formulas_through_and_stops_the_rest():
    for text in (
        r"\frac{-1+\sqrt{5}}{2}",
        "x^2+y^2=1",
        r"2^{1009}",
        "3^2+5^2",
        "e^{-x^2}",
        "2abc",
    ):
        assert is_safe(text), text
    for text in (
        "9^9^9",
        r"9^{(9+1)^{9}}",
        r"\sum k",
        r"\lim x",
        "east",
        "52_8",
        "x" * 301,
        "é",
        "a'b",
        "9!!",
    ):
        assert not is_safe(text), text


def test_verdicts_are_the_same_in_a_thread_where_alarms_do_not_work(caplog):
    verdicts = []

    def judge():
        verdicts.append(same_answer(r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"))

    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(target=judge)
        thread.start()
        thread.join()
    assert verdicts == [True]
    assert not caplog.records


def test_plain_numbers_never_load_computer_algebra():
    texts = (
        "42",
        "1,234",
        r"\frac{1}{2}",
        "50%",
        "42 apples",
        "2^{10}",
        "no idea",
        "(1, 2)",
        "x = 5",
    )
    program = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from jaxgrpo.problems import Problem\n"
        "from jaxgrpo.rewards.maths.verifier import accuracy\n"
        f"for text in {texts!r}:\n"
        "    accuracy(Problem('1', '', '42'), '\\\\boxed{' + text + '}')\n"
        "sys.exit(bool({'sympy', 'math_verify', 'jax', 'numpy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_in_a_pool_a_formula_is_judged_and_a_zero_is_not_missing():
    with Pool({"accuracy": Weighted(verifier.accuracy)}, 1, deadline=30.0) as pool:
        texts = [
            r"\boxed{\sqrt{8}}",
            r"\boxed{9**9**9}",
            r"\boxed{2\sqrt{3}}",
            "",
            r"\boxed{\sqrt{\frac{16}{2}}}",
        ]
        verdicts = [
            values["accuracy"]
            for values in pool.result(pool.submit(problem(r"2\sqrt{2}"), texts))
        ]
    assert verdicts == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert not any(isinstance(verdict, Missing) for verdict in verdicts)


def test_settings_reach_a_pool():
    reward = Accuracy(("boxed", "number"), tolerance=0.01)
    assert find_reward(reward_name(reward)) == reward
    with Pool(
        {"near": Weighted(reward), "exact": Weighted(Accuracy())}, 1, deadline=30.0
    ) as pool:
        assert pool.result(
            pool.submit(problem("100"), ["so 100.5", r"\boxed{100}"])
        ) == [
            {"near": 1.0, "exact": 0.0},
            {"near": 1.0, "exact": 1.0},
        ]


@pytest.mark.parametrize(
    "piece",
    [
        "answer ",
        "answer of ",
        "1,",
        "1 ",
        "9^",
        r"\frac{1}",
        "5 cents ",
        "-",
        "the ",
        "答案",
    ],
)
def test_extraction_and_comparison_take_linear_time(piece):
    before = time.monotonic()
    extract_answer(piece * 20_000, ALL)
    same_answer(piece * 150, "42")
    assert time.monotonic() - before < 2


def test_scores_are_finite_floats():
    assert all(type(accuracy(problem(), text)) is float for text in ("", r"\boxed{42}"))


def test_the_check_of_data_sets_counts_and_names_exceptions(tmp_path, capsys):
    rows = [
        ("What is 6 * 7?", "6 * 7 = 42\n#### 42"),
        ("What is 6 * 200?", "#### 1,200"),
        ("What is 1 / 2?", "#### 1/2"),
    ]
    lines = [
        json.dumps({"question": question, "answer": answer})
        for question, answer in rows
    ]
    (tmp_path / "gsm8k_train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert check_math.main(["--data", str(tmp_path)]) == 0
    assert (
        "3 problems  right 3 (100.00%)  computed 3 (100.00%)  wrong 3 (100.00%)"
        in capsys.readouterr().out
    )
    row = {"problem": "?", "solution": r"\boxed{5}", "answer": "5", "unique_id": "five"}
    other = row | {"solution": r"\boxed{6}", "answer": "x=5", "unique_id": "x"}
    (tmp_path / "math500.jsonl").write_text(
        json.dumps(row) + "\n" + json.dumps(other), encoding="utf-8"
    )
    assert check_math.main(["--data", str(tmp_path)]) == 1
    assert (
        "    x: 'x=5' is not itself\n    x: 'x=5' is also '5' of five\n"
        in capsys.readouterr().out
    )
    assert check_math.main(["--data", str(tmp_path / "nothing")]) == 2
