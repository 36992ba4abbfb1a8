"""What the host side speaks of."""

import copy
import json
import pickle

import pytest

from jaxgrpo.problems import Completion


def test_a_completion_is_its_text_for_whoever_asks_no_more():
    completion = Completion("42", tokens=3, finished=False)
    assert completion == "42"
    assert {completion: 1}["42"] == 1
    assert json.dumps([completion]) == '["42"]'
    assert (completion.tokens, completion.finished) == (3, False)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda text: pickle.loads(pickle.dumps(text))])
def test_a_copy_of_a_completion_knows_as_much(copied):
    copied = copied(Completion("\ud800 é", tokens=3, finished=False))
    assert (copied, copied.tokens, copied.finished) == ("\ud800 é", 3, False)
