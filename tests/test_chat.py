"""Checks chat templates of every kind.

The question is asked, or one line says why not; tags stay; what a prompt opened is known.
"""

import json

import pytest

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Completion, Problem
from jaxgrpo.rewards import prose
from jaxgrpo.rewards.languages import consistency
from jaxgrpo.rewards.layout import Tags, think_then_answer
from jaxgrpo.rewards.maths.verifier import accuracy
from jaxgrpo.text import tokenizer
from tests.chat_folders import CHATML, GEMMA, MISTRAL, make_chat_folder

IM = ("<|im_start|>",)
ALTERNATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "[INST] {{ m['content'] }} [/INST]{% endfor %}"
)
SILENT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "<|im_start|>{{ m['content'] }}<|im_end|>"
    "{% endif %}{% endfor %}"
)
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
EITHER = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{{ m['content'][0]['text'] }}"
    "{% endif %}<|im_end|>\n{% endfor %}"
)
PHI = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|assistant|>\n"
)
LLAMA = (
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
NO_ASSISTANT = (
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}\n"
    "{% endfor %}"
)


def load(folder, template=CHATML, special=IM, **given):
    return tokenizer.load(make_chat_folder(folder, template, special=special, **given))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            CHATML,
            "<|im_start|>system\nThink first.<|im_end|>\n<|im_start|>user\n3+4?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            PARTS,
            "<|im_start|>system\nThink first.<|im_end|>\n<|im_start|>user\n3+4?<|im_end|>\n"
            "<|im_start|>assistant",
        ),
        (
            EITHER,
            "<|im_start|>system\nThink first.<|im_end|>\n<|im_start|>user\n3+4?<|im_end|>\n",
        ),
        (
            GEMMA,
            "<start_of_turn>user\nThink first.\n\n3+4?<end_of_turn>\n<start_of_turn>model",
        ),
        (MISTRAL, "[INST] Think first.\n\n3+4? [/INST]"),
        (ALTERNATE, "[INST] Think first.\n\n3+4? [/INST]"),
        (SILENT, "<|im_start|>Think first.\n\n3+4?<|im_end|>"),
        (NO_ASSISTANT, "Think first.\n3+4?\n"),
        (
            "{{ strftime_now('') }}{% if tools %}{{ tools }}{% endif %}" + NO_ASSISTANT,
            "Think first.\n3+4?\n",
        ),
        (
            "{{ messages[0].content }} {{ messages[1].content if messages[1] else '' }}",
            "Think first. 3+4?",
        ),
    ],
)
def test_the_question_and_the_system_message_are_asked(tmp_path, template, expected):
    """A system message that the template refuses, or leaves out, opens the user's turn."""
    loaded = load(tmp_path, template)
    assert loaded.hf.decode(loaded.prompt("3+4?", "Think first.")) == expected
    alone = loaded.hf.decode(loaded.prompt("3+4?"))
    assert alone.count("3+4?") == 1
    assert "Think" not in alone
    assert loaded.hf.decode(loaded.prompt("  3+4?\n")).count("3+4?") == 1


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m['content'] }", "unexpected '}'"),
        ("{{ raise_exception('only for tools') }}", "only for tools"),
        ("{% if messages %}{{ 1 / 0 }}{% endif %}", "division by zero"),
        ("{{ messages[0].content.nothing.at_all }}", "has no attribute 'nothing'"),
        ("Ask away: ", "it leaves out the question"),
        (
            "{% for m in messages %}{{ m['text'] }}{% endfor %}",
            "it leaves out the question",
        ),
    ],
)
def test_a_template_that_cannot_ask_is_one_line(tmp_path, template, reason):
    with pytest.raises(UserError) as caught:
        load(tmp_path, template)
    said = str(caught.value)
    assert said.startswith(f"the chat template in {tmp_path} cannot ask a question (")
    assert reason in said
    assert "chat_template.jinja or tokenizer_config.json" in said
    assert "\n" not in said


def name_templates(folder, **named):
    """Puts templates by name into tokenizer_config.json, in the place of the one there was."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    templates = [{"name": name, "template": text} for name, text in named.items()]
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"chat_template": templates})
    )


def test_of_named_templates_the_default_asks(tmp_path):
    make_chat_folder(tmp_path, CHATML, special=IM)
    name_templates(
        tmp_path, tool_use="{{ raise_exception('no tools') }}", default=CHATML
    )
    loaded = tokenizer.load(tmp_path)
    text = loaded.hf.decode(loaded.prompt("3+4?"))
    assert text == "<|im_start|>user\n3+4?<|im_end|>\n<|im_start|>assistant\n"
    name_templates(tmp_path, rag=CHATML, chat=CHATML)
    with pytest.raises(
        UserError, match="there are chat, rag, and none is named default"
    ) as caught:
        tokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_the_template_may_stand_in_the_file_of_a_processor(tmp_path):
    """Models of text and images have it there. A tokenizer's own comes first."""
    make_chat_folder(tmp_path, None, special=IM)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    asked = "<|im_start|>user\n3+4?<|im_end|>\n<|im_start|>assistant\n"
    loaded = tokenizer.load(tmp_path)
    assert loaded.hf.decode(loaded.prompt("3+4?")) == asked
    make_chat_folder(tmp_path, NO_ASSISTANT, special=IM)
    loaded = tokenizer.load(tmp_path)
    assert loaded.hf.decode(loaded.prompt("3+4?")) == "3+4?\n"


def test_a_question_that_the_template_leaves_out_is_one_line(tmp_path):
    """Although it renders others."""
    loaded = load(
        tmp_path, CHATML.replace("m['content']", "m['content'].split('#')[0]")
    )
    assert loaded.prompt("3+4?")
    with pytest.raises(
        UserError,
        match=r"cannot ask a question \(it leaves out the question '3 # 4\?'\)",
    ):
        loaded.prompt("3 # 4?")


@pytest.mark.parametrize(
    ("special", "text"),
    [
        (("<think>", "</think>"), "<think>\\boxed{6}</think>\\boxed{7}"),
        (("<answer>", "</answer>"), "<answer>7</answer>"),
        (("[THINK]", "[/THINK]"), "[THINK]a[/THINK]b"),
        (
            ("<|begin_of_thought|>", "<|end_of_thought|>"),
            "<|begin_of_thought|>a<|end_of_thought|>",
        ),
        (("<tool_call>",), "<tool_call>"),
        (("\n",), "a\nb"),
        (("◁think▷", "◁/think▷"), "◁think▷a◁/think▷b"),
    ],
)
def test_special_tokens_that_are_content_stay(tmp_path, special, text):
    loaded = load(tmp_path, special=(*IM, *special), bos="<s>")
    ids = loaded.encode(text)
    assert loaded.decode(ids) == text
    assert (
        loaded.decode(
            [*loaded.encode("<|im_start|><s>"), *ids, *loaded.encode("<|im_end|>")]
        )
        == text
    )
    assert (
        loaded.decode_all([*ids, *loaded.encode("<|im_start|>")])
        == text + "<|im_start|>"
    )


@pytest.mark.parametrize(
    ("template", "special", "control"),
    [
        (MISTRAL, ("[INST]", "[/INST]"), "[INST][/INST]"),
        (ALTERNATE, ("[INST]", "[/INST]"), "[INST][/INST]"),
        (GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<start_of_turn><end_of_turn>"),
        (
            PHI,
            ("<|system|>", "<|user|>", "<|assistant|>"),
            "<|system|><|user|><|assistant|>",
        ),
        (
            LLAMA,
            ("<|start_header_id|>", "<|end_header_id|>"),
            "<|start_header_id|><|end_header_id|>",
        ),
        (NO_ASSISTANT.replace("{{ m.", "<turn>{{ m."), ("<turn>",), "<turn>"),
    ],
)
def test_special_tokens_that_turns_are_wrapped_in_are_dropped(
    tmp_path, template, special, control
):
    loaded = load(tmp_path, template, special=special)
    assert loaded.decode(loaded.encode(f"12{control} + 7")) == "12 + 7"


def test_empty_thoughts_of_earlier_turns_wrap_nothing(tmp_path):
    """Some templates write them before every answer; the policy still has to write the tags."""
    for i, tags in enumerate(TAGS):
        thoughtless = (
            "{% if m['role'] == 'assistant' %}"
            + "\n\n".join(tags)
            + "\n\n{% endif %}{{ m['content'] }}"
        )
        template = CHATML.replace("{{ m['content'] }}", thoughtless)
        loaded = load(tmp_path / str(i), template, special=(*IM, *tags))
        text = f"{tags[0]}a{tags[1]}b"
        assert loaded.decode(loaded.encode(text)) == text
        assert loaded.decode(loaded.encode("<|im_start|>")) == ""


TAGS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
]
"""Between which models think: Qwen 3, EXAONE, Magistral, Kimi, Sky-T1, Command A and others."""


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize(
    ("end", "opened"),
    [
        ("", ""),
        ("<think>", "<think>"),
        ("<think>\n", "<think>\n"),
        ("<think>\n\n</think>\n\n", ""),
        ("</think>", ""),
        ("[THINK]", "[THINK]"),
        ("[THINK][/THINK]", ""),
        ("<|begin_of_thought|>\n\n", "<|begin_of_thought|>\n\n"),
        ("<|START_THINKING|>", "<|START_THINKING|>"),
        ("<|START_THINKING|><|END_THINKING|>", ""),
        ("◁think▷", "◁think▷"),
        ("◁think▷◁/think▷", ""),
        ("Let me think. <reasoning>\n", "<reasoning>\n"),
        ("Let me see: ", ""),
    ],
)
@pytest.mark.parametrize("always", [True, False])
def test_what_a_prompt_opens_is_known(tmp_path, end, opened, registered, always):
    """Its tags may be special tokens, and the template may ask if an answer is to begin."""
    template = CHATML.replace("assistant\n", f"assistant\n{end}")
    if always:
        template = template.replace("{% if add_generation_prompt %}", "").removesuffix(
            "{% endif %}"
        )
    tags = (
        "<think>",
        "</think>",
        "[THINK]",
        "<|begin_of_thought|>",
        "<|START_THINKING|>",
        "<reasoning>",
        "◁think▷",
    )
    loaded = load(tmp_path, template, special=(*IM, *tags) if registered else IM)
    # Jinja drops a line's end at the end of a template.
    opened = opened.removesuffix("\n") if always else opened
    assert loaded.completion_prefix == opened
    assert loaded.hf.decode(loaded.prompt("3+4?")).endswith(opened)
    ids = loaded.encode("12 + 7")
    assert loaded.completion(ids) == opened + "12 + 7"
    assert loaded.decode(ids) == "12 + 7"


def test_the_tag_that_every_turn_begins_with_is_not_opened(tmp_path):
    turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>{% endfor %}"
    template = turns + "{% if add_generation_prompt %}<assistant>{% endif %}"
    assert load(tmp_path, template).completion_prefix == ""


@pytest.mark.parametrize(
    ("reward", "written", "finished", "expected"),
    [
        (think_then_answer, "I add 3 and 4.\n</think>\n\n\\boxed{7}", True, 1.0),
        (think_then_answer, "I add 3 and 4.\n\\boxed{7}", True, 0.0),
        (think_then_answer, "<think>3 + 4</think>\\boxed{7}", True, 0.0),
        (Tags(), "I add 3 and 4.\n</think>\n<answer>7</answer>", True, 1.0),
        (accuracy, "Maybe \\boxed{7}, but let me check once more", False, 0.0),
        (accuracy, "Maybe \\boxed{6}.\n</think>\\boxed{7}", True, 1.0),
    ],
)
def test_rewards_see_what_the_prompt_opened(
    tmp_path, reward, written, finished, expected
):
    loaded = load(tmp_path, CHATML.replace("assistant\n", "assistant\n<think>\n"))
    text = Completion(loaded.completion(loaded.encode(written)), 9, finished)
    assert reward(Problem("1", "3+4?", "7"), text) == expected


@pytest.mark.parametrize(("opening", "closing"), TAGS)
def test_rewards_know_what_models_think_in(tmp_path, opening, closing):
    loaded = load(tmp_path, CHATML.replace("assistant\n", f"assistant\n{opening}\n"))

    def seen(text: str) -> str:
        return loaded.completion(loaded.encode(text))

    thought = seen(f"\\boxed{{6}}?\n{closing}\n\\boxed{{7}}")
    cut_off = seen("Maybe \\boxed{7}")
    asked = Problem("1", "3+4?", "7")
    assert accuracy(asked, thought) == think_then_answer(asked, thought) == 1.0
    assert accuracy(asked, cut_off) == think_then_answer(asked, cut_off) == 0.0
    assert prose.part(thought, "think") == "\n\\boxed{6}?\n"
    assert prose.part(thought, "answer") == "\n\\boxed{7}"
    assert prose.part(thought, "all") == thought
    other = "</think>" if opening != "<think>" else "</thought>"
    assert think_then_answer(asked, seen(f"6\n{other}\n\\boxed{{7}}")) == 0.0


def test_the_language_of_opened_thoughts_is_measured(tmp_path):
    loaded = load(tmp_path, CHATML.replace("assistant\n", "assistant\n<think>\n"))
    thoughts = (
        "Zuerst zähle ich die Äpfel zusammen, und dann ziehe ich die gegessenen Äpfel davon wieder "
        "ab."
    )
    answer = "The answer, which we have found above, is seven apples."
    text = loaded.completion(loaded.encode(f"{thoughts}\n</think>\n{answer}"))
    assert consistency.word_ratios(text, "de").target > 0.9


# --- conversations ---

CONTEXT = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
]
OWN_SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("template", "turns"),
    [
        (
            CHATML,
            "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n"
            "<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\n3+4?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        # No system message is taken, so it opens the first of the user's turns.
        (
            GEMMA,
            "<start_of_turn>user\n{}\n\n1+1?<end_of_turn>\n<start_of_turn>model\n2<end_of_turn>\n"
            "<start_of_turn>user\n3+4?<end_of_turn>\n<start_of_turn>model\n",
        ),
        (MISTRAL, "[INST] {}\n\n1+1? [/INST] 2<|im_end|>[INST] 3+4? [/INST]"),
        (
            PARTS,
            "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n"
            "<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\n3+4?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
    ],
)
def test_turns_before_the_prompt_reach_the_template(tmp_path, template, turns):
    loaded = load(tmp_path, template)
    asked = loaded.hf.decode(loaded.prompt("3+4?", "Think.", context=CONTEXT))
    # Jinja drops a line break at the very end of a template.
    turns = turns if asked.endswith("\n") else turns.rstrip()
    assert asked == turns.format("Think.")
    # A system message of the problem's own takes the place of the run's.
    context = [OWN_SYSTEM, *CONTEXT]
    for system in ("Think.", ""):
        own = loaded.hf.decode(loaded.prompt("3+4?", system, context=context))
        assert own == turns.format("Be brief.")
    assert loaded.prompt("3+4?", context=[OWN_SYSTEM]) == loaded.prompt(
        "3+4?", "Be brief."
    )


def test_a_template_that_leaves_out_an_earlier_question_is_refused(tmp_path):
    last = "<|im_start|>{{ messages[-1]['content'] }}<|im_end|>"
    loaded = load(tmp_path, last)
    assert loaded.prompt("3+4?")
    with pytest.raises(UserError, match=r"leaves out the question '1\+1\?'"):
        loaded.prompt("3+4?", context=CONTEXT)


def test_without_a_template_turns_are_lines_in_the_language_of_the_problem(tmp_path):
    loaded = load(tmp_path, None)
    asked = loaded.hf.decode(loaded.prompt("3+4?", language="de", context=CONTEXT))
    alone = loaded.hf.decode(loaded.prompt("3+4?", language="de"))
    lines = "Nutzer: 1+1?\nAssistent: 2\nNutzer: 3+4?\nAssistent:"
    assert asked == alone.replace("Nutzer: 3+4?\nAssistent:", lines)
    assert asked.endswith(lines)
    context = [OWN_SYSTEM, *CONTEXT]
    own = loaded.hf.decode(loaded.prompt("3+4?", "Think.", "de", context))
    assert own == f"Be brief.\n\n{lines}"
