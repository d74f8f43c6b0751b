"""Tasks in six languages with the language-consistency reward: thoughts and answers in the language that is asked for.

Sentences are long enough for the identifier behind the `language` reward to tell them apart.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from rlplatform.tasks.general.task import Example, Task
from rlplatform.tasks.general.words import FORMAT, part


@dataclass(frozen=True)
class Phrases:
    """One language's words; the lists say the same things in the same order in every language."""

    name: Mapping[str, str]  # of the language itself: "say this in ..."
    who: tuple[str, ...]
    owner: tuple[str, ...]  # the same people as the sentence needs them
    what: tuple[str, ...]
    where: tuple[str, ...]
    sentence: str  # {owner} {what} {where}
    question: str  # {owner}: what, and where?
    think: str  # a thought about {who}'s sentence
    sum_question: str  # {owner} {a} {b}
    sum_think: str  # {a} {b} {total}
    sum_answer: str  # {total}
    say: str  # say {text} in this language


PHRASES = {
    "en": Phrases(
        {"en": "English", "de": "German", "fr": "French", "es": "Spanish", "ru": "Russian", "zh": "Chinese"},
        ("Anna", "Peter", "Maria", "Paul", "Laura", "Max"),
        ("Anna", "Peter", "Maria", "Paul", "Laura", "Max"),
        (
            "a red apple",
            "an old book",
            "a small dog",
            "a green lamp",
            "a new bicycle",
            "a white cup",
            "a big hat",
            "a black cat",
        ),
        ("in the kitchen", "in the garden", "at school", "at the market", "at the station", "in the park"),
        "{owner} has {what} {where}.",
        "What does {owner} have, and where?",
        "The text says what {who} has and where that is.",
        "{owner} has {a} apples and buys {b} more. How many apples are there now?",
        "We add the two numbers of apples: {a}+{b}={total}",
        "Now there are this many apples altogether: \\boxed{{{total}}}",
        "Say this in English: {text}",
    ),
    "de": Phrases(
        {"de": "Deutsch"},
        ("Anna", "Peter", "Maria", "Paul", "Laura", "Max"),
        ("Anna", "Peter", "Maria", "Paul", "Laura", "Max"),
        (
            "einen roten Apfel",
            "ein altes Buch",
            "einen kleinen Hund",
            "eine grüne Lampe",
            "ein neues Fahrrad",
            "eine weiße Tasse",
            "einen großen Hut",
            "eine schwarze Katze",
        ),
        ("in der Küche", "im Garten", "in der Schule", "auf dem Markt", "am Bahnhof", "im Park"),
        "{owner} hat {what} {where}.",
        "Was hat {owner}, und wo ist das?",
        "Der Text sagt, was {who} hat und wo das ist.",
        "{owner} hat {a} Äpfel und kauft noch {b} dazu. Wie viele Äpfel sind es jetzt?",
        "Wir zählen die beiden Zahlen der Äpfel zusammen: {a}+{b}={total}",
        "Jetzt sind es insgesamt so viele Äpfel: \\boxed{{{total}}}",
        "Sage das auf Deutsch: {text}",
    ),
    "fr": Phrases(
        {"fr": "français"},
        ("Anna", "Pierre", "Marie", "Paul", "Laura", "Max"),
        ("Anna", "Pierre", "Marie", "Paul", "Laura", "Max"),
        (
            "une pomme rouge",
            "un vieux livre",
            "un petit chien",
            "une lampe verte",
            "un vélo neuf",
            "une tasse blanche",
            "un grand chapeau",
            "un chat noir",
        ),
        ("dans la cuisine", "dans le jardin", "à l'école", "au marché", "à la gare", "dans le parc"),
        "{owner} a {what} {where}.",
        "Qu'est-ce que {owner} a, et où est-ce ?",
        "Le texte dit ce que {who} possède et où cela se trouve.",
        "{owner} a {a} pommes et en achète encore {b}. Combien de pommes y a-t-il maintenant ?",
        "Nous ajoutons les deux nombres de pommes : {a}+{b}={total}",
        "Maintenant il y a en tout ce nombre de pommes : \\boxed{{{total}}}",
        "Dis cela en français : {text}",
    ),
    "es": Phrases(
        {"es": "español"},
        ("Ana", "Pedro", "María", "Pablo", "Laura", "Max"),
        ("Ana", "Pedro", "María", "Pablo", "Laura", "Max"),
        (
            "una manzana roja",
            "un libro viejo",
            "un perro pequeño",
            "una lámpara verde",
            "una bicicleta nueva",
            "una taza blanca",
            "un sombrero grande",
            "un gato negro",
        ),
        ("en la cocina", "en el jardín", "en la escuela", "en el mercado", "en la estación", "en el parque"),
        "{owner} tiene {what} {where}.",
        "¿Qué tiene {owner}, y dónde está?",
        "El texto dice qué cosa tiene {who} y dónde está.",
        "{owner} tiene {a} manzanas y compra {b} más. ¿Cuántas manzanas hay ahora?",
        "Sumamos los dos números de las manzanas: {a}+{b}={total}",
        "Ahora hay en total este número de manzanas: \\boxed{{{total}}}",
        "Di esto en español: {text}",
    ),
    "ru": Phrases(
        {"ru": "русский"},
        ("Анна", "Пётр", "Мария", "Павел", "Лаура", "Макс"),
        ("Анны", "Петра", "Марии", "Павла", "Лауры", "Макса"),
        (
            "красное яблоко",
            "старая книга",
            "маленькая собака",
            "зелёная лампа",
            "новый велосипед",
            "белая чашка",
            "большая шляпа",
            "чёрная кошка",
        ),
        ("на кухне", "в саду", "в школе", "на рынке", "на вокзале", "в парке"),
        "У {owner} {where} есть {what}.",
        "Что есть у {owner} и где это находится?",
        "В тексте сказано, что есть у этого человека и где это находится.",
        "У {owner} {a} яблок, и ещё {b} куплено. Сколько теперь всего яблок?",
        "Складываем оба числа яблок: {a}+{b}={total}",
        "Теперь всего получилось столько яблок: \\boxed{{{total}}}",
        "Скажи это по-русски: {text}",
    ),
    "zh": Phrases(
        {"zh": "中文"},
        ("安娜", "彼得", "玛丽", "保罗", "劳拉", "马克斯"),
        ("安娜", "彼得", "玛丽", "保罗", "劳拉", "马克斯"),
        ("一个红苹果", "一本旧书", "一只小狗", "一盏绿灯", "一辆新自行车", "一个白杯子", "一顶大帽子", "一只黑猫"),
        ("在厨房里", "在花园里", "在学校里", "在市场上", "在车站", "在公园里"),
        "{owner}{where}有{what}。",
        "{owner}有什么？在哪里？",
        "文中说了{who}有什么，也说了在哪里。",
        "{owner}有{a}个苹果，又买了{b}个。现在一共有多少个苹果？",
        "把两个数加起来：{a}+{b}={total}",
        "现在一共有这么多个苹果：\\boxed{{{total}}}",
        "用中文说：{text}",
    ),
}
LANGUAGES = tuple(PHRASES)
Fact = tuple[int, int, int]  # who, what, where


def _sentence(language: str, fact: Fact) -> str:
    words = PHRASES[language]
    return words.sentence.format(owner=words.owner[fact[0]], what=words.what[fact[1]], where=words.where[fact[2]])


def _facts(rng: random.Random, number: int) -> list[Fact]:
    """Of different people, with different things at different places."""
    words = PHRASES["en"]
    drawn = (rng.sample(range(len(lists)), number) for lists in (words.who, words.what, words.where))
    return list(zip(*drawn, strict=True))


def _other(rng: random.Random, language: str) -> str:
    return rng.choice([one for one in LANGUAGES if one != language])


def reading_languages(rng: random.Random, level: int) -> Example:
    """A question about a text in its own language, answered by a sentence of the text."""
    language = rng.choice(LANGUAGES)
    words, found = PHRASES[language], _facts(rng, min(level + 1, 4))
    context = ("" if language == "zh" else " ").join(_sentence(language, fact) for fact in found)
    asked = rng.choice(found)
    other = _other(rng, language)
    return Example(
        user=f"{context}\n{words.question.format(owner=words.owner[asked[0]])}",
        thought=words.think.format(who=words.who[asked[0]]),
        answer=_sentence(language, asked),
        wrong=_sentence(other, asked),
        wrong_thought=PHRASES[other].think.format(who=PHRASES[other].who[asked[0]]),
        columns={"context": context, "answer": [_sentence(language, asked)], "language": language},
    )


def asked_language(rng: random.Random, level: int) -> Example:
    """A sentence of one language, to be said in another; the request is in the language of the answer or in English."""
    language = rng.choice(LANGUAGES)
    source = "en" if language != "en" else _other(rng, "en")
    found = _facts(rng, level)
    given, answer = (
        ("" if one == "zh" else " ").join(_sentence(one, fact) for fact in found) for one in (source, language)
    )
    english = PHRASES["en"].name[language]
    in_english = source == "en" and rng.random() < 0.5
    words = PHRASES[language]
    return Example(
        user=f"Say this in {english}: {given}" if in_english else words.say.format(text=given),
        thought=words.think.format(who=words.who[found[0][0]]),
        answer=answer,
        wrong=given,
        wrong_thought=PHRASES[source].think.format(who=PHRASES[source].who[found[0][0]]),
        columns={"answer": answer, "language": language},
    )


def sums_languages(rng: random.Random, level: int) -> Example:
    """A sum told in one language; a right result with words of another is not right."""
    language = rng.choice(LANGUAGES)
    words, other = PHRASES[language], PHRASES[_other(rng, language)]
    a, b = rng.randint(5, 30 * level), rng.randint(5, 30 * level)
    return Example(
        user=words.sum_question.format(owner=rng.choice(words.owner), a=a, b=b),
        thought=words.sum_think.format(a=a, b=b, total=a + b),
        answer=words.sum_answer.format(total=a + b),
        wrong=other.sum_answer.format(total=a + b),
        wrong_thought=other.sum_think.format(a=a, b=b, total=a + b),
        columns={"answer": str(a + b), "language": language},
    )


_LANGUAGE = {**FORMAT, "language": 0.4}

TASKS = (
    Task(
        "asked_language",
        "instruction",
        "with_reference",
        "a sentence, to be said in the language asked for",
        {**_LANGUAGE, "translation": part("f1", 0.4)},
        asked_language,
        LANGUAGES,
    ),
    Task(
        "reading_languages",
        "specialised",
        "with_reference",
        "an answer out of a text, in the language of the text",
        {**_LANGUAGE, "grounded": part("grounded_qa", 0.4)},
        reading_languages,
        LANGUAGES,
    ),
    Task(
        "sums_languages",
        "specialised",
        "with_reference",
        "a sum told as a story, solved in its language",
        {**_LANGUAGE, "sum": part("math", 0.4, needs={"language": 0.9})},
        sums_languages,
        LANGUAGES,
    ),
)
