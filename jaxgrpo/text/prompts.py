# ruff: noqa: RUF001  (letters of other scripts are meant)
r"""How a model is asked that brings no chat template: what is wanted of it is said in the language of the problem.

Laid out as the prompt of DeepSeek-R1-Zero (arXiv 2501.12948, table 1): reasoning in a think block, then the answer, here in
\boxed{}; what `rewards.format.think_then_answer` looks for. One language throughout, so that the thoughts are in it, too.
"""

ASKED = {
    "en": (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
        "Assistant first "
        "thinks about the reasoning process in English and then gives the user the answer. The reasoning process is enclosed "
        r"within <think> and </think>, and the final answer after it within \boxed{}, that is: "
        r"<think> reasoning process here </think> \boxed{answer here}.",
        "User",
        "Assistant",
    ),
    "zh": (
        "以下是用户与助手之间的对话。用户提出问题,助手解答。助手先用中文思考推理过程,再给出答案。"
        r"推理过程写在 <think> 和 </think> 之间,最终答案写在其后的 \boxed{} 中,即:"
        r"<think> 推理过程 </think> \boxed{答案}。",
        "用户",
        "助手",
    ),
    "ko": (
        "다음은 사용자와 도우미의 대화입니다. 사용자가 질문하면 도우미가 풉니다. 도우미는 먼저 한국어로 풀이 과정을 "
        "생각하고, 그다음 "
        r"답을 제시합니다. 풀이 과정은 <think>와 </think> 사이에 쓰고, 최종 답은 그 뒤에 \boxed{} 안에 씁니다. 곧, "
        r"<think> 풀이 과정 </think> \boxed{답}.",
        "사용자",
        "도우미",
    ),
    "uk": (
        "Розмова між Користувачем і Помічником. Користувач ставить запитання, а Помічник його розв'язує. Спершу "
        "Помічник обмірковує "
        "хід розв'язання українською, а потім дає відповідь. Міркування записано між <think> і </think>, а остаточну "
        "відповідь "
        r"після них у \boxed{}, тобто: <think> міркування </think> \boxed{відповідь}.",
        "Користувач",
        "Помічник",
    ),
    "ja": (
        "以下はユーザーとアシスタントの会話です。ユーザーが質問し、アシスタントが解きます。"
        "アシスタントはまず日本語で考え方を検討し、"
        r"それから答えを示します。考える過程は <think> と </think> の間に、最終的な答えはその後の \boxed{} "
        "の中に書きます。すなわち、"
        r"<think> 考える過程 </think> \boxed{答え}。",
        "ユーザー",
        "アシスタント",
    ),
    "th": (
        "บทสนทนาระหว่างผู้ใช้กับผู้ช่วย ผู้ใช้ถามคำถามและผู้ช่วยหาคำตอบ ผู้ช่วยคิดขั้นตอนการให้เหตุผลเป็นภาษาไทยก่อน แล้วจึงให้คำตอบ "
        r"ขั้นตอนการให้เหตุผลอยู่ระหว่าง <think> กับ </think> และคำตอบสุดท้ายอยู่ถัดไปใน \boxed{} นั่นคือ "
        r"<think> ขั้นตอนการให้เหตุผล </think> \boxed{คำตอบ}",
        "ผู้ใช้",
        "ผู้ช่วย",
    ),
    "ru": (
        "Разговор между Пользователем и Помощником. Пользователь задаёт вопрос, а Помощник его решает. Сначала "
        "Помощник обдумывает "
        "ход решения по-русски, а затем даёт ответ. Рассуждение записано между <think> и </think>, а окончательный "
        "ответ после "
        r"него в \boxed{}, то есть: <think> рассуждение </think> \boxed{ответ}.",
        "Пользователь",
        "Помощник",
    ),
    "de": (
        "Ein Gespräch zwischen Nutzer und Assistent. Der Nutzer stellt eine Frage, und der Assistent löst sie. Der "
        "Assistent denkt "
        "zuerst auf Deutsch über den Lösungsweg nach und gibt dann die Antwort. Der Gedankengang steht zwischen <think> und "
        r"</think>, die endgültige Antwort danach in \boxed{}, also: <think> Gedankengang </think> \boxed{Antwort}.",
        "Nutzer",
        "Assistent",
    ),
    "fr": (
        "Une conversation entre Utilisateur et Assistant. L'utilisateur pose une question et l'assistant la résout. "
        "L'assistant "
        "réfléchit d'abord au raisonnement en français, puis donne la réponse. Le raisonnement est écrit entre <think> et "
        r"</think>, et la réponse finale ensuite dans \boxed{}, c'est-à-dire : "
        r"<think> raisonnement </think> \boxed{réponse}.",
        "Utilisateur",
        "Assistant",
    ),
    "es": (
        "Una conversación entre Usuario y Asistente. El usuario hace una pregunta y el asistente la resuelve. El "
        "asistente piensa "
        "primero el razonamiento en español y luego da la respuesta. El razonamiento se escribe entre <think> y "
        "</think>, y la "
        r"respuesta final después en \boxed{}, es decir: <think> razonamiento </think> \boxed{respuesta}.",
        "Usuario",
        "Asistente",
    ),
}
"""Of each language what is asked for, and what the two who speak are called."""


def asked(prompt: str, language: str) -> str:
    """The whole text, up to where the answer begins; in English where there is none in the language."""
    wanted, user, assistant = ASKED.get(language.split("-")[0].lower(), ASKED["en"])
    return f"{wanted}\n{user}: {prompt}\n{assistant}:"


def plain(prompt: str, system: str) -> str:
    """The text for who says in a system message what is wanted, or wants nothing."""
    return f"{system}\n\n{prompt}\n" if system else f"{prompt}\n"
