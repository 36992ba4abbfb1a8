# ruff: noqa: RUF001  (letters of other scripts are meant)
r"""Asks a model that has no chat template: says what is wanted of it in the problem's language.

The text is laid out as the prompt of DeepSeek-R1-Zero (arXiv 2501.12948, table 1): reasoning in a
think block, then the answer, here in \boxed{}. That is the form that
`rewards.layout.think_then_answer` looks for. The whole prompt is in one language, so that the
thoughts are in it, too.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxgrpo.text.messages import Message


class BasePrompt(NamedTuple):
    """The words of a conversation in one language.

    instruction: what is asked of the model
    user, assistant: what the two speakers are called
    """

    instruction: str
    user: str
    assistant: str


BASE_PROMPTS = {
    "en": BasePrompt(
        instruction=(
            "A conversation between User and Assistant. The user asks a question, and the "
            "Assistant solves it. The Assistant first thinks about the reasoning process in "
            "English and then gives the user the answer. The reasoning process is enclosed "
            r"within <think> and </think>, and the final answer after it within \boxed{}, that "
            r"is: <think> reasoning process here </think> \boxed{answer here}."
        ),
        user="User",
        assistant="Assistant",
    ),
    "zh": BasePrompt(
        instruction=(
            "以下是用户与助手之间的对话。用户提出问题,助手解答。助手先用中文思考推理过程,"
            r"再给出答案。推理过程写在 <think> 和 </think> 之间,最终答案写在其后的 \boxed{} 中,"
            r"即:<think> 推理过程 </think> \boxed{答案}。"
        ),
        user="用户",
        assistant="助手",
    ),
    "ko": BasePrompt(
        instruction=(
            "다음은 사용자와 도우미의 대화입니다. 사용자가 질문하면 도우미가 풉니다. 도우미는 "
            "먼저 한국어로 풀이 과정을 생각하고, 그다음 답을 제시합니다. 풀이 과정은 <think>와 "
            r"</think> 사이에 쓰고, 최종 답은 그 뒤에 \boxed{} 안에 씁니다. 곧, <think> 풀이 과정 "
            r"</think> \boxed{답}."
        ),
        user="사용자",
        assistant="도우미",
    ),
    "uk": BasePrompt(
        instruction=(
            "Розмова між Користувачем і Помічником. Користувач ставить запитання, а Помічник "
            "його розв'язує. Спершу Помічник обмірковує хід розв'язання українською, а потім дає "
            "відповідь. Міркування записано між <think> і </think>, а остаточну відповідь після "
            r"них у \boxed{}, тобто: <think> міркування </think> \boxed{відповідь}."
        ),
        user="Користувач",
        assistant="Помічник",
    ),
    "ja": BasePrompt(
        instruction=(
            "以下はユーザーとアシスタントの会話です。ユーザーが質問し、アシスタントが解きます。"
            "アシスタントはまず日本語で考え方を検討し、それから答えを示します。考える過程は "
            r"<think> と </think> の間に、最終的な答えはその後の \boxed{} の中に書きます。"
            r"すなわち、<think> 考える過程 </think> \boxed{答え}。"
        ),
        user="ユーザー",
        assistant="アシスタント",
    ),
    "th": BasePrompt(
        instruction=(
            "บทสนทนาระหว่างผู้ใช้กับผู้ช่วย ผู้ใช้ถามคำถามและผู้ช่วยหาคำตอบ "
            "ผู้ช่วยคิดขั้นตอนการให้เหตุผลเป็นภาษาไทยก่อน แล้วจึงให้คำตอบ "
            "ขั้นตอนการให้เหตุผลอยู่ระหว่าง <think> กับ </think> และคำตอบสุดท้ายอยู่ถัดไปใน "
            r"\boxed{} นั่นคือ <think> ขั้นตอนการให้เหตุผล </think> \boxed{คำตอบ}"
        ),
        user="ผู้ใช้",
        assistant="ผู้ช่วย",
    ),
    "ru": BasePrompt(
        instruction=(
            "Разговор между Пользователем и Помощником. Пользователь задаёт вопрос, а Помощник "
            "его решает. Сначала Помощник обдумывает ход решения по-русски, а затем даёт ответ. "
            "Рассуждение записано между <think> и </think>, а окончательный ответ после него в "
            r"\boxed{}, то есть: <think> рассуждение </think> \boxed{ответ}."
        ),
        user="Пользователь",
        assistant="Помощник",
    ),
    "de": BasePrompt(
        instruction=(
            "Ein Gespräch zwischen Nutzer und Assistent. Der Nutzer stellt eine Frage, und der "
            "Assistent löst sie. Der Assistent denkt zuerst auf Deutsch über den Lösungsweg nach "
            "und gibt dann die Antwort. Der Gedankengang steht zwischen <think> und </think>, "
            r"die endgültige Antwort danach in \boxed{}, also: <think> Gedankengang </think> "
            r"\boxed{Antwort}."
        ),
        user="Nutzer",
        assistant="Assistent",
    ),
    "fr": BasePrompt(
        instruction=(
            "Une conversation entre Utilisateur et Assistant. L'utilisateur pose une question et "
            "l'assistant la résout. L'assistant réfléchit d'abord au raisonnement en français, "
            "puis donne la réponse. Le raisonnement est écrit entre <think> et </think>, et la "
            r"réponse finale ensuite dans \boxed{}, c'est-à-dire : <think> raisonnement </think> "
            r"\boxed{réponse}."
        ),
        user="Utilisateur",
        assistant="Assistant",
    ),
    "es": BasePrompt(
        instruction=(
            "Una conversación entre Usuario y Asistente. El usuario hace una pregunta y el "
            "asistente la resuelve. El asistente piensa primero el razonamiento en español y "
            "luego da la respuesta. El razonamiento se escribe entre <think> y </think>, y la "
            r"respuesta final después en \boxed{}, es decir: <think> razonamiento </think> "
            r"\boxed{respuesta}."
        ),
        user="Usuario",
        assistant="Asistente",
    ),
}
"""By language code."""


def base_model_prompt(
    question: str, language: str, context: Sequence[Message] = ()
) -> str:
    """Returns the text that asks for thoughts and an answer, up to where the completion begins.

    language: of the problem, as a code or a tag ("zh-CN"); without a prompt in it, English is asked
    context: turns of the user and the assistant before the question
    """
    prompt = _base_prompt(language)
    return f"{prompt.instruction}\n{_conversation(prompt, question, context)}"


def plain_prompt(
    question: str, system: str, language: str = "en", context: Sequence[Message] = ()
) -> str:
    """Returns the question alone, after the system message if there is one.

    With turns before it, it stands in a conversation as `base_model_prompt` writes it.
    """
    text = f"{question}\n"
    if context:
        text = _conversation(_base_prompt(language), question, context)
    return f"{system}\n\n{text}" if system else text


def _base_prompt(language: str) -> BasePrompt:
    # All regions of a language share its prompt.
    code = language.split("-")[0].lower()
    return BASE_PROMPTS.get(code, BASE_PROMPTS["en"])


def _conversation(prompt: BasePrompt, question: str, context: Sequence[Message]) -> str:
    """Returns a line for each turn, that of the assistant's answer begun."""
    names = {"user": prompt.user, "assistant": prompt.assistant}
    lines = [f"{names[turn['role']]}: {turn['content']}" for turn in context]
    return "\n".join([*lines, f"{prompt.user}: {question}", f"{prompt.assistant}:"])
