"""What is checked before a run begins."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem
from jaxgrpo.run import SCANNED, Fitting, _check_shards, model_folder
from jaxgrpo.tokenizer import Tokenizer
from tests.tiny_runs import make_config


@dataclass
class Letters:
    """Stands for a Hugging Face tokenizer without a chat template: a token a character."""

    chat_template: str = ""

    def __call__(self, text, add_special_tokens):
        return SimpleNamespace(input_ids=[ord(letter) for letter in text])


def problems_of(*lengths: int) -> list[Problem]:
    """Problems whose prompts have so many tokens; the template ends every prompt with one more."""
    return [Problem(str(i), "x" * (length - 1), "1") for i, length in enumerate(lengths)]


def fitting(width: int, system: str = "") -> Fitting:
    return Fitting(Tokenizer(Letters(), (0,), 0), system, width)


def test_a_prompt_as_long_as_the_width_fits():
    assert [fitting(5).fits(problem) for problem in problems_of(4, 5, 6)] == [True, True, False]


def test_the_system_message_counts():
    assert fitting(8, "four").fits(problems_of(2)[0])  # four, two line ends, x, line end
    assert not fitting(7, "four").fits(problems_of(2)[0])


def test_long_prompts_are_counted():
    assert fitting(5).check(problems_of(4, 5), "training") is None
    note = fitting(5).check(problems_of(4, 6, 9, 5), "training")
    assert note == "2 of 4 training prompts are longer than 5 tokens and left out; 9 takes all"


def test_only_so_many_are_measured():
    many = problems_of(6, *[2] * SCANNED, 9)
    note = fitting(5).check(many, "training")
    assert note == "1 of the first 10,000 training prompts are longer than 5 tokens and left out; 6 takes all"


def test_a_language_that_cannot_be_told_is_refused_with_the_problem():
    problems = [Problem("a", "x", "1", "pt-BR"), Problem("b", "x", "1", "Klingon")]
    with pytest.raises(UserError, match="the problem 'b' has the language 'Klingon', which cannot be told"):
        fitting(5).check(problems, "training")
    assert fitting(5).first(problems, 2) == problems[:1]  # as any of those that are not looked at before


def test_all_too_long_is_refused_with_the_numbers():
    with pytest.raises(UserError) as error:
        fitting(5).check(problems_of(7, 9, 6), "held-out")
    assert str(error.value) == (
        "3 of 3 held-out prompts are longer than sampling.prompt_width=5 tokens, the shortest 6: raise it; 9 takes all"
    )


def test_no_problems_are_refused():
    with pytest.raises(UserError, match="training: there are no problems"):
        fitting(5).check([], "training")


def test_the_first_that_fit_are_taken():
    problems = problems_of(9, 2, 9, 3, 4, 5)
    assert [problem.id for problem in fitting(5).first(problems, 3)] == ["1", "3", "4"]
    assert [problem.id for problem in fitting(5).first(problems, 9)] == ["1", "3", "4", "5"]


def test_the_embedded_model_is_the_default():
    assert (model_folder("") / "config.json").is_file()
    assert str(model_folder("~/mine")).startswith("/")


@pytest.mark.parametrize(
    ("shards", "overrides", "says"),
    [
        (8, ("batch.groups=3",), "batch.groups * batch.group_size is 12: it must be a multiple of"),
        (8, ("batch.groups=4", "batch.micro_batch=4"), "batch.micro_batch is 4"),
        (8, ("batch.groups=4", "sampling.slots=12"), "sampling.slots is 12"),
        (8, ("batch.groups=4", "evaluation.samples=3"), None),
        (1, ("batch.groups=3", "evaluation.samples=3", "sampling.slots=5"), None),
    ],
)
def test_what_the_devices_cannot_share_is_refused(tmp_path, shards, overrides, says):
    config = make_config(tmp_path, *overrides)
    slots = config.sampling.slots or 2 * config.batch.groups * config.batch.group_size
    arguments = config, shards, slots
    if says is None:
        return _check_shards(*arguments)
    with pytest.raises(UserError) as error:
        _check_shards(*arguments)
    assert str(error.value).startswith(says)
    assert str(error.value).endswith(f"mesh.data * mesh.fsdp = {shards} devices")
    return None
