"""The page of papers has every paper that the code names, with settings that a run accepts."""

import dataclasses
import re

import pytest

from jaxgrpo.config import Config, load, validate
from tests.documents import BY_NAME, ROOT

PAGE = BY_NAME["docs/papers.md"]
BLOCKS = PAGE.blocks("python")
NUMBER = re.compile(r"\b\d{4}\.\d{5}\b")
SETTINGS = {field.name for field in dataclasses.fields(Config)}

OWN_LOOPS = ("losses.after_step",)
"""What is in blocks that are for loops of one's own: they have no settings."""


def settings_of(block: str) -> dict:
    """Returns the settings of a run that a block defines, by name."""
    names: dict = {}
    exec(compile(block, "example", "exec"), names)
    return {name: value for name, value in names.items() if name in SETTINGS}


def run_with(settings: dict) -> Config:
    """Returns the quickstart with settings. One update a batch, for objectives without a ratio."""
    return dataclasses.replace(
        load("quickstart", ["--config.batch.updates=1"]), **settings
    )


def title_of(block: str) -> str:
    """Returns the heading that a block stands under."""
    before = PAGE.text.split(block)[0]
    return re.findall(r"^#+ (.*)$", before, re.MULTILINE)[-1]


@pytest.mark.parametrize("block", BLOCKS, ids=title_of)
def test_the_settings_of_each_paper_are_accepted(block):
    settings = settings_of(block)
    assert bool(settings) != any(name in block for name in OWN_LOOPS)
    validate(run_with(settings))


def test_a_setting_that_is_not_accepted_would_be_noticed():
    block = "from jaxgrpo import losses\nobjective = losses.DPPO(threshold=-1.0)\n"
    with pytest.raises(Exception, match=r"objective\.threshold is -1\.0"):
        validate(run_with(settings_of(block)))


def test_every_paper_in_the_code_is_on_the_page_and_no_other():
    code = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "jaxgrpo").rglob("*.py")
    )
    assert set(NUMBER.findall(code)) == set(NUMBER.findall(PAGE.text))


def test_every_paper_is_linked():
    unlinked = re.sub(r"\[[\d.]+\]\(https://arxiv\.org/abs/[\d.]+\)", "", PAGE.text)
    numbers = set(NUMBER.findall(unlinked))
    assert numbers == set()
    for text, target in re.findall(
        r"\[([\d.]+)\]\(https://arxiv\.org/abs/([\d.]+)\)", PAGE.text
    ):
        assert text == target
