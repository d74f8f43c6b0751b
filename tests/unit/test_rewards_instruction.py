"""`instruction`: IFEval's 25 kinds one by one, where the benchmark's own code differs, and the benchmarks' rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from rewards.base import NOT_APPLICABLE, OK, UNPARSEABLE
from rewards.instruction import KINDS, instruction_reward, loose_variants
from rewards.instruction_library import library_languages, library_says
from rewards.instruction_text import count_phrase, has_words, is_in_language, paragraphs, sentences, words

DATA = Path(__file__).parents[2].parent / "shared" / "data"
LESS, LEAST = "less than", "at least"
LONG_EN = "the train leaves the station at noon and it arrives in the evening, long after dinner."


def grade(completion, ids, arguments=None, prompt="x", prompt_text=None, **chosen):
    rendered = None if prompt_text is None else [prompt_text]
    [verdict] = instruction_reward([prompt], [completion], [ids], [arguments], rendered, **chosen)
    return verdict


def score(completion, instruction_id, arguments=None, **chosen):
    verdict = grade(completion, [instruction_id], [arguments or {}], **chosen)
    assert verdict.status == OK, verdict.detail
    assert verdict.parts == {instruction_id: verdict.score}
    return verdict.score


def rows_of(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not in ../shared/data")
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.decode().split("\n") if line]


# --- the 25 kinds ---------------------------------------------------------------------------------------------------
# Instruction -> cases (arguments, answer, is it followed, does the benchmark's own code say otherwise)

A, D = False, True  # the library agrees, differs
RATE = {"keywords": ["rate", "rte"]}
WAR2, WAR1 = {"keyword": "war", "frequency": 2, "relation": LEAST}, {"keyword": "war", "frequency": 1, "relation": LESS}
NO_RUN = {"forbidden_words": ["run", "well-known", "C++"]}
THREE = {"num_words": 3, "relation": LEAST}
UNDER_3 = {"num_words": 3, "relation": LESS}
PROMPT = {"prompt_to_repeat": 'Write a riddle about "ice" for me'}
PARTS = {"section_spliter": "SECTION", "num_sections": 2}
FIRST = {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "It"}
PS, PPS = {"postscript_marker": "P.S."}, {"postscript_marker": "P.P.S"}
END = {"end_phrase": "in India."}

CASES = {
    "keywords:existence": [
        (RATE, "The rate of an RTE.", 1, A),
        (RATE, "**Rate** and `rte`.", 1, A),
        (RATE, "_rate_ or __rte__", 1, A),
        (RATE, "A rate.", 0, A),
        (RATE, "corporate courtesy arterial", 0, D),  # substrings
        (RATE, "The rates of rte.", 0, D),
        (RATE, "r a t e r t e", 0, A),
        ({"keywords": ["C++", "a.b"]}, "I like C++ and a.b!", 1, A),  # not regular expressions
        ({"keywords": ["a.b"]}, "It is a+b or axb.", 0, D),
        ({"keywords": ["well worth watching"]}, "It is well\nworth watching.", 1, D),
        ({"keywords": ["don't"]}, "I don’t know.", 1, D),
        ({"keywords": ["straße"]}, "STRASSE", 1, D),
        ({"keywords": ["今天"]}, "我们今天去公园", 1, A),
        ({"keywords": ["हिन्दी"]}, "हिन्दी भाषा", 1, A),
        ({"keywords": ["हिन्द"]}, "हिन्दी भाषा", 0, D),
    ],
    "keywords:frequency": [
        (WAR2, "War and war.", 1, A),
        (WAR2, "War.", 0, A),
        (WAR2, "War: a reward for a warm dwarf.", 0, D),
        (WAR2, "war-war", 1, A),
        (WAR1, "Peace.", 1, A),
        (WAR1, "War.", 0, A),
        (WAR1, "Move toward the reward.", 1, D),
        (WAR1, "wa\u200br is war\u00ad", 0, A),
        (WAR1, "Only wa\u200br.", 0, D),  # an invisible character hides nothing
        ({"keyword": "the", "frequency": 2, "relation": LESS}, "The other thesis", 1, D),
        ({"keyword": "c++", "frequency": 1, "relation": LEAST}, "C++", 1, A),
    ],
    "keywords:forbidden_words": [
        (NO_RUN, "Walk.", 1, A),
        (NO_RUN, "A trunk and a runner.", 1, A),
        (NO_RUN, "RUN!", 0, A),
        (NO_RUN, "**run**", 0, A),
        (NO_RUN, "_run_", 0, D),  # markdown is no disguise
        (NO_RUN, "A well-known man", 0, A),
        (NO_RUN, "I write C++ code", 0, A),
        (NO_RUN, "ｒｕｎ", 0, D),
        (NO_RUN, "r\u00adun", 0, D),
        ({"forbidden_words": ["a.c"]}, "abc", 1, D),
        ({"forbidden_words": ["今天"]}, "我们今天去", 0, D),
    ],
    "keywords:letter_frequency": [
        ({"letter": "o", "let_frequency": 2, "let_relation": LEAST}, "Oh no", 1, A),
        ({"letter": "o", "let_frequency": 3, "let_relation": LEAST}, "Oh no", 0, A),
        ({"letter": "O", "let_frequency": 2, "let_relation": LESS}, "Oh no", 0, A),
        ({"letter": "o", "let_frequency": 3, "let_relation": LESS}, "Oh no", 1, A),
        ({"letter": "!", "let_frequency": 2, "let_relation": LEAST}, "Hi! Ho!", 1, None),  # the library draws a letter
        ({"letter": "!", "let_frequency": 3, "let_relation": LEAST}, "Hi! Ho!", 0, None),
        ({"letter": "e", "let_frequency": 1, "let_relation": LEAST}, "caf\u00e9", 0, A),
        ({"letter": "e", "let_frequency": 1, "let_relation": LEAST}, "cafe\u0301", 0, D),  # the same text, decomposed
        ({"letter": "é", "let_frequency": 1, "let_relation": LEAST}, "cafe\u0301", 1, None),
    ],
    "language:response_language": [
        ({"language": "de"}, "Ich habe heute keine Zeit, aber morgen komme ich gern vorbei.", 1, A),
        ({"language": "de"}, "I have no time today, but I will be glad to come by tomorrow.", 0, A),
        ({"language": "de"}, "Ja, gern.", 1, A),
        ({"language": "de"}, "1 2 3", 0, D),  # no language at all
        ({"language": "de"}, "Das ist ein Hund. Er lebt hier bei uns. This is a dog, it lives here too.", 0, D),
        ({"language": "sw"}, "Habari ya asubuhi, rafiki yangu mpendwa.", 1, D),
        ({"language": "pt"}, "Olá, tudo bem?", 1, D),
        ({"language": "pt"}, "El perro está durmiendo en la cama de mi hermana.", 0, A),
        ({"language": "ne"}, "म आज बजार जाँदैछु।", 1, D),
        ({"language": "mr"}, "मी आज बाजारात जात आहे.", 1, A),
        ({"language": "mr"}, "मैं आज बाजार जा रहा हूँ।", 0, A),
        ({"language": "hi"}, "मैं आज बाजार जा रहा हूँ।", 1, A),
        ({"language": "hi"}, "Main aaj bazaar ja raha hoon, aap kaise hain?", 0, A),
        ({"language": "hi"}, "मैं आज बाजार जा रहा हूँ। I am going to the market today, see you there.", 0, A),
        ({"language": "bg"}, "Добър ден, как сте днес?", 1, A),
        ({"language": "bg"}, "Добрый день, как ваши дела сегодня?", 0, A),
        ({"language": "ko"}, "안녕하세요", 1, A),
        ({"language": "kn"}, "ನಮಸ್ಕಾರ, ನೀವು ಹೇಗಿದ್ದೀರಿ? ನಾನು Python ಕಲಿಯುತ್ತಿದ್ದೇನೆ.", 1, A),
        ({"language": "en"}, "PIKACHU IS NOT AN AVENGER", 1, D),
        ({"language": "zh-CN"}, "你好，世界，今天天气很好。", 1, None),
        ({"language": "zh"}, "Hello, the weather is nice today.", 0, None),
    ],
    "length_constraints:number_sentences": [
        ({"num_sentences": 2, "relation": LEAST}, "One is here. Two is there.", 1, A),
        ({"num_sentences": 3, "relation": LEAST}, "One is here. Two is there.", 0, A),
        ({"num_sentences": 2, "relation": LESS}, "One is here. Two is there.", 0, A),
        ({"num_sentences": 3, "relation": LESS}, "One is here! Is two there?", 1, A),
        ({"num_sentences": 2, "relation": LESS}, "Dr. Smith paid $3.50 to Mr. Jones.", 1, A),
        ({"num_sentences": 2, "relation": LESS}, "Bring fruit, e.g. apples, i.e. what grows here.", 1, D),
        ({"num_sentences": 3, "relation": LEAST}, "Yes. 1. 2. 3. 4.", 0, D),  # numbers of a list are no sentences
        ({"num_sentences": 2, "relation": LEAST}, "今天很好。我们去公园。", 1, D),
        ({"num_sentences": 2, "relation": LEAST}, "मैं जाता हूँ। वह आता है।", 1, D),
        ({"num_sentences": 2, "relation": LEAST}, "a b c\nd e f\ng h i", 0, A),
    ],
    "length_constraints:number_paragraphs": [
        ({"num_paragraphs": 2}, "One.\n***\nTwo.", 1, A),
        ({"num_paragraphs": 2}, "One.\n\n***\n\nTwo.\n", 1, A),
        ({"num_paragraphs": 2}, "One. *** Two.", 1, A),
        ({"num_paragraphs": 2}, "***\nOne.\n***\nTwo.\n***", 1, A),
        ({"num_paragraphs": 2}, "One.\n\nTwo.", 0, A),
        ({"num_paragraphs": 2}, "One.\n***\n***\nTwo.", 0, A),
        ({"num_paragraphs": 2}, "One.\n***\nTwo.\n***\nThree.", 0, A),
        ({"num_paragraphs": 2}, "One.\n* * *\nTwo.", 1, D),  # as the paper writes it
        ({"num_paragraphs": 2}, "One.\n******\nTwo.", 1, D),
        ({"num_paragraphs": 2}, "One is ***very*** nice", 0, A),
        ({"num_paragraphs": 3}, "One is ***very*** nice", 0, D),  # bold italics are no divider
        ({"num_paragraphs": 2}, "***One*** is nice.\n***\nTwo.", 1, D),
        ({"num_paragraphs": 1}, "One.", 1, A),
        ({"num_paragraphs": 2}, "One.\n***\n...", 0, D),
    ],
    "length_constraints:number_words": [
        (THREE, "One two three", 1, A),
        (THREE, "One two", 0, A),
        (UNDER_3, "One two three", 0, A),
        (UNDER_3, "One two", 1, A),
        (THREE, "Don't stop", 0, D),
        (THREE, "It’s 1,000.50", 0, D),
        (UNDER_3, "Don't stop", 1, D),
        (UNDER_3, "one_two_three", 0, D),
        (UNDER_3, "one/two/three", 0, A),
        (THREE, "well-known man", 1, A),
        (THREE, "— ! — ! — yes", 0, A),
        (THREE, "今天好", 1, D),
        (UNDER_3, "हिन्दी भाषा", 1, A),
        (THREE, "**One** *two* `three`", 1, A),
    ],
    "length_constraints:nth_paragraph_first_word": [
        (FIRST, "One.\n\nIt is two.\n\nThree.", 1, A),
        (FIRST, "One.\n\nit is two.\n\nThree.", 1, A),
        (FIRST, 'One.\n\n"It is two."\n\nThree.', 1, A),
        (FIRST, "One.\n\n**It** is two.\n\nThree.", 1, D),
        (FIRST, "One.\n\n\n\nIt is two.\n\nThree.", 1, D),
        (FIRST, "One.\n \nIt is two.\n\t\nThree.", 1, D),
        (FIRST, "One.\r\n\r\nIt is two.\r\n\r\nThree.", 1, D),
        (FIRST, "One.\n\nIt is two.\n\nThree.\n\n***", 1, D),
        (FIRST, "One.\n\nIt's two.\n\nThree.", 0, D),
        (FIRST, "One.\n\nIt’s two.\n\nThree.", 0, A),
        (FIRST, "One.\n\nIts two.\n\nThree.", 0, A),
        (FIRST, "It.\n\nTwo.\n\nThree.", 0, A),
        (FIRST, "One.\n\nIt is two.", 0, A),
        (FIRST, "One.\n\nIt is two.\n\nThree.\n\nFour.", 0, A),
        (FIRST, "One.\nIt is two.\nThree.", 0, A),
        (FIRST | {"nth_paragraph": 4}, "a\n\nb\n\nc\n\nit", 0, None),
    ],
    "detectable_content:number_placeholders": [
        ({"num_placeholders": 2}, "Dear [name], at [address]", 1, A),
        ({"num_placeholders": 2}, "Dear [name]", 0, A),
        ({"num_placeholders": 1}, "Dear (name)", 0, A),
        ({"num_placeholders": 2}, "[First Name] [Name 2] [Straße]", 1, A),
        ({"num_placeholders": 1}, "See [this page](https://example.com)", 0, D),
        ({"num_placeholders": 1}, "- [ ] milk\n- [x] bread", 0, D),
        ({"num_placeholders": 1}, "As shown [1] and [2], []", 0, D),
        ({"num_placeholders": 2}, "[[name]]", 0, A),
        ({"num_placeholders": 1}, r"\[ x = 1 \]", 0, D),  # a formula
        ({"num_placeholders": 1}, "[na\nme]", 0, A),
        ({"num_placeholders": 0}, "none", 1, A),
    ],
    "detectable_content:postscript": [
        (PS, "Dear Ann.\n\nYours\n\nP.S. I love you.", 1, A),
        (PS, "Dear Ann.\n**P.S.** I love you.", 1, A),
        (PS, "Dear Ann. P. S. I love you.", 1, A),
        (PS, "dear ann.\n\np.s. i love you.", 1, A),
        (PS, "Dear Ann.<br>P.S. I love you.", 1, A),
        (PS, "Dear Ann.\n\nP.S. Bye.\n\nSee you!", 1, A),
        (PS, "Dear Ann.", 0, A),
        (PS, "Dear Ann.\n\nPS: I love you.", 0, A),
        (PS, "Dear Ann.\n\nP.P.S. I love you.", 0, D),
        (PS, "Dear Ann.\n\nP. P. S. I love you.", 0, D),
        (PS, "P.S. I love you.\n\nDear Ann.\n\nHow are you?", 0, D),  # not at the end
        (PS, "P.S. I love you.", 0, D),
        (PS, "Dear Ann.\n\nP.S.", 0, D),  # and nothing
        (PS, "He ended his letters with a P.S. as a joke.", 0, D),
        (PPS, "Dear Ann.\n\nP.P.S. I love you.", 1, A),
        (PPS, "Dear Ann.\n\nP.P.S I love you.", 1, A),
        (PPS, "Dear Ann.\n\nP.P.S: I love you.", 1, A),
        (PPS, "Dear Ann.\n\nP.S. I love you.", 0, A),
        (PPS, "Dear Ann.\n\nP.S. I love you.\n\nP.P.S. Still.", 1, A),
        ({"postscript_marker": "N.B."}, "Yes.\n\nN.B. not always.", 1, A),
        ({"postscript_marker": "N.B."}, "Yes.\n\nNxBy not always.", 0, D),
    ],
    "detectable_format:number_bullet_lists": [
        ({"num_bullets": 2}, "Fruit:\n* apple\n* pear", 1, A),
        ({"num_bullets": 2}, "- apple\n- pear", 1, A),
        ({"num_bullets": 2}, "* apple\n  - green\n", 1, A),
        ({"num_bullets": 2}, "* apple", 0, A),
        ({"num_bullets": 2}, "* apple\n* pear\n* fig", 0, A),
        ({"num_bullets": 2}, "1. apple\n2. pear", 0, A),
        ({"num_bullets": 2}, "• apple\n• pear", 0, A),
        ({"num_bullets": 2}, "+ apple\n+ pear", 1, D),
        ({"num_bullets": 2}, "* apple\n* pear\n\n---\nDone.", 1, D),
        ({"num_bullets": 2}, "* apple\n* * *\n* pear", 1, D),
        ({"num_bullets": 2}, "*Fruit*: all\n* apple\n* pear", 1, D),  # italics
        ({"num_bullets": 2}, "**Fruit**\n* apple\n* pear", 1, A),
        ({"num_bullets": 1}, "It is\n-5 degrees", 0, D),
        ({"num_bullets": 2}, "```\n* apple\n* pear\n```", 0, D),
        ({"num_bullets": 2}, "* apple\n* pear\n```diff\n- a\n+ b\n```\n", 1, D),
        ({"num_bullets": 1}, "* \napple", 0, D),
    ],
    "detectable_format:constrained_response": [
        ({}, "My answer is yes.", 1, A),
        ({}, "I think about it. My answer is no.", 1, A),
        ({}, '"My answer is maybe."', 1, A),
        ({}, "my answer is yes.", 0, A),
        ({}, "My answer is yes", 0, A),
        ({}, "Yes.", 0, A),
        ({}, "My answer is yes. My answer is no.", 0, D),
        ({}, "My answer is perhaps.", 0, A),
    ],
    "detectable_format:number_highlighted_sections": [
        ({"num_highlights": 2}, "*one* and *two*", 1, A),
        ({"num_highlights": 2}, "**one** and **two words**", 1, A),
        ({"num_highlights": 2}, "**one** and *two*", 1, A),
        ({"num_highlights": 2}, "*one*", 0, A),
        ({"num_highlights": 1}, "one", 0, A),
        ({"num_highlights": 2}, "***one***", 0, D),  # one, not two
        ({"num_highlights": 1}, "** ** and ****", 0, A),
        ({"num_highlights": 1}, "5 * 3 * 2 = 30", 0, D),
        ({"num_highlights": 1}, "5*3*2 = 30", 0, D),
        ({"num_highlights": 1}, "* item * item", 0, D),
        ({"num_highlights": 1}, "* apple\n* pear", 0, A),
        ({"num_highlights": 1}, "* This is *new*", 1, A),
        ({"num_highlights": 1}, "one\n***\ntwo\n***\nthree", 0, A),
        ({"num_highlights": 1}, "```c\nint *a, *b;\n```", 0, D),
        ({"num_highlights": 1}, "`*args, **kwargs`", 0, D),
        ({"num_highlights": 1}, r"\*not\*", 0, D),
        ({"num_highlights": 1}, "这是*重点*内容", 1, A),
        ({"num_highlights": 1}, "*...*", 0, D),
    ],
    "detectable_format:multiple_sections": [
        (PARTS, "SECTION 1\nIce.\nSECTION 2\nSnow.", 1, A),
        (PARTS, "## SECTION 1: Ice\nIt is cold.\n\n**SECTION 2**\nSnow.", 1, A),
        (PARTS, '"SECTION 1\nIce.\nSECTION 2\nSnow."', 1, A),
        (PARTS, "SECTION 1 Ice. ", 0, A),
        (PARTS, "Section 1\nIce.\nSection 2\nSnow.", 0, A),
        (PARTS, "Ice, see SECTION 1 and SECTION 2.", 0, D),  # prose
        (PARTS, "SECTION 1\nIce.\nSECTION 2\nSnow.\nSECTION 3\nRain.", 0, D),
        (PARTS, "SECTION 1\nIce.\nSECTION 1\nSnow.", 0, D),
        (PARTS, "SECTION 1\nSECTION 2", 0, D),
        (PARTS, "SECTION A\nIce.\nSECTION B\nSnow.", 0, A),
        (PARTS, "SECTION 1\nIce.\nSECTION 2\nSnow.\n******\nSECTION 1\nHail.\nSECTION 2\nRain.", 1, A),
        ({"section_spliter": "Day (", "num_sections": 1}, "Day (1) we go", 1, None),  # no regular expression
    ],
    "detectable_format:json_format": [
        ({}, '{"a": [1, 2]}', 1, A),
        ({}, '```json\n{"a": 1}\n```', 1, A),
        ({}, '```\n[{"a": 1}]\n```', 1, A),
        ({}, '```JSON\n{"a": 1}\n```', 1, A),
        ({}, 'Here: {"a": 1}', 0, A),
        ({}, '```json\n{"a": 1}\n```\nDone.', 0, A),
        ({}, "{'a': 1}", 0, A),
        ({}, '{"a": 1,}', 0, A),
        ({}, "42", 0, D),
        ({}, '"yes"', 0, D),
        ({}, '{"a": NaN}', 0, D),
        ({}, '{"a": 1, "a": 2}', 0, D),
        ({}, '```json\n{"a": 1}', 0, D),  # the fence is not closed
        ({}, '{"a": 1}\n```', 0, D),
        ({}, '{"a": 1}\n{"a": 2}', 0, A),
        ({}, "[" * 10_000 + "1" + "]" * 10_000, 0, A),
    ],
    "detectable_format:title": [
        ({}, "<<Ode to Joy>>\nFreude", 1, A),
        ({}, "Text << a title >> text", 1, A),
        ({}, "<<A -> B>>", 1, A),
        ({}, "<Ode>", 0, A),
        ({}, "<< >>", 0, A),
        ({}, "<<>>", 0, A),
        ({}, "<<...>>", 0, D),
        ({}, "<<Ode\nto Joy>>", 0, A),
        ({}, "« Ode »", 0, A),
        ({}, "<<<<>> >>", 0, D),
    ],
    "combination:two_responses": [
        ({}, "Yes.\n******\nNo.", 1, A),
        ({}, "Yes.******No.", 1, A),
        ({}, "******\nYes.\n******\nNo.\n******", 1, A),
        ({}, "Yes.\n***\nNo.", 0, A),
        ({}, "Yes.", 0, A),
        ({}, "Yes.\n******\nYes.", 0, A),
        ({}, "Yes.\n******\nyes!", 0, D),
        ({}, "Response 1: Yes.\n******\nResponse 2: Yes.", 0, D),
        ({}, "Here are two:\n******\nYes.\n******\nNo.", 0, A),
        ({}, "Yes.\n******\n******\nNo.", 0, A),
        ({}, "Yes.\n*******\nNo.", 0, D),  # seven
        ({}, "Yes.\n******\n...", 0, D),
    ],
    "combination:repeat_prompt": [
        (PROMPT, 'Write a riddle about "ice" for me\n\nWhat melts?', 1, A),
        (PROMPT, 'Write a riddle\nabout "ice" for me. What melts?', 1, D),  # a line break
        (PROMPT, 'Write a riddle about "ice" for me', 0, D),  # and no answer
        (PROMPT, 'Write a riddle about "ice" for men. What melts?', 0, D),
        (PROMPT, 'WRITE A RIDDLE ABOUT "ICE" FOR ME. What melts?', 0, D),
        (PROMPT, 'Sure! Write a riddle about "ice" for me. What melts?', 0, A),
        (PROMPT, '"Write a riddle about "ice" for me" What melts?', 0, A),
        (PROMPT, "Write a riddle about ice for me. What melts?", 0, A),
        (PROMPT, "What melts?", 0, A),
    ],
    "startend:end_checker": [
        (END, "The lion lives in India.", 1, A),
        (END, "The lion lives IN INDIA. ", 1, A),
        (END, '"The lion lives in India."', 1, A),
        (END, "The lion lives **in India.**", 1, D),
        (END, "“The lion lives in India.”", 1, D),
        (END, "The lion lives in\nIndia.", 1, D),
        (END, "It is found within India.", 0, D),  # another word
        (END, "The lion lives in India", 0, A),
        (END, "The lion lives in India. Bye.", 0, A),
        (END, "The lion lives in India..", 0, A),
        (END, "in India.", 1, A),
        ({"end_phrase": 'He said "yes"'}, 'It is so. He said "yes"', 1, D),
    ],
    "startend:quotation": [
        ({}, '"A lion."', 1, A),
        ({}, ' "A lion\n\nand a cat."\n', 1, A),
        ({}, '"He said "yes" to me."', 1, A),
        ({}, '"He said "yes""', 1, A),
        ({}, '"{"polite": "yes","a":"b"}"', 1, A),
        ({}, '"Note: **"so"** it is, a="b"."', 1, A),
        ({}, '"Hello," she said. "Bye."', 0, D),
        ({}, "“A lion.”", 1, D),
        ({}, "A lion.", 0, A),
        ({}, "'A lion.'", 0, A),
        ({}, '"A lion.', 0, A),
        ({}, '"A lion." Yes.', 0, A),
        ({}, '"A lion" and "a cat"', 0, D),
        ({}, '"A lion."\n\n"A cat."', 0, D),
        ({}, '"', 0, A),
        ({}, '"2" x 4"', 0, D),  # ambiguous: read as two
    ],
    "change_case:capital_word_frequency": [
        ({"capital_frequency": 2, "capital_relation": LEAST}, "WOW it is HOT", 1, A),
        ({"capital_frequency": 3, "capital_relation": LEAST}, "WOW it is HOT", 0, A),
        ({"capital_frequency": 2, "capital_relation": LESS}, "WOW it is HOT", 0, A),
        ({"capital_frequency": 3, "capital_relation": LESS}, "WOW it is HOT", 1, A),
        ({"capital_frequency": 1, "capital_relation": LEAST}, "I am. A man.", 0, D),  # one letter
        ({"capital_frequency": 1, "capital_relation": LESS}, "I am. A man.", 1, D),
        ({"capital_frequency": 2, "capital_relation": LEAST}, "IT'S", 0, D),  # one word
        ({"capital_frequency": 2, "capital_relation": LEAST}, "STATE-OF-ART", 0, A),
        ({"capital_frequency": 1, "capital_relation": LEAST}, "**WOW**!", 1, A),
        ({"capital_frequency": 2, "capital_relation": LEAST}, "COVID-19 in the U.S.", 1, A),
        ({"capital_frequency": 2, "capital_relation": LEAST}, "YES/NO", 1, D),
        ({"capital_frequency": 1, "capital_relation": LEAST}, "WOw", 0, A),
        ({"capital_frequency": 1, "capital_relation": LEAST}, "1 2 3", 0, A),
        ({"capital_frequency": 2, "capital_relation": LEAST}, "ÄRGER ÜBER", 1, A),
    ],
    "change_case:english_capital": [
        ({}, LONG_EN.upper(), 1, A),
        ({}, "PIKACHU IS NOT AN AVENGER.", 1, D),
        ({}, "DEAR FRIEND, I AM WELL. 1 + 1 = 2!", 1, A),
        ({}, LONG_EN.upper() + " Bye.", 0, A),
        ({}, LONG_EN, 0, A),
        ({}, "ICH HABE HEUTE KEINE ZEIT, ABER MORGEN KOMME ICH GERN VORBEI.", 0, A),
        ({}, "1 2 3", 0, A),
    ],
    "change_case:english_lowercase": [
        ({}, LONG_EN, 1, A),
        ({}, "haiku about rain falling on the old stone bridge", 1, A),
        ({}, "my answer is no.", 1, A),
        ({}, "day 1: arrive in zürich, see the schweizerhof\nday 2: hike to lauterbrunnen", 1, D),
        ({}, LONG_EN + " I", 0, A),
        ({}, LONG_EN.upper(), 0, A),
        ({}, "une lettre à mon ami qui habite à paris", 0, A),
        ({}, "1 2 3", 0, A),
    ],
    "punctuation:no_comma": [
        ({}, "No comma here.", 1, A),
        ({}, "Well, one.", 0, A),
        ({}, "1,000", 0, A),
        ({}, "```\nf(a, b)\n```", 0, A),
        ({}, "你好，世界", 0, D),
        ({}, "苹果、梨", 0, D),
        ({}, "سلام، دنیا", 0, D),
        ({}, "one; two: three", 1, A),
        ({}, "Ioană ș", 1, A),  # a letter with a comma below
        ({}, "'quoted' ‚unten‘", 1, A),
    ],
}  # fmt: skip
FLAT = [(instruction_id, *case) for instruction_id, cases in CASES.items() for case in cases]


def test_every_kind_has_a_table():
    assert set(CASES) == set(KINDS)
    assert len(KINDS) == 25
    for cases in CASES.values():
        assert {followed for _, _, followed, _ in cases} == {0, 1}


def test_the_page_counts_the_cases():
    page = (Path(__file__).parents[2] / "docs" / "instructions.md").read_text()
    differ = [followed for _, _, _, followed, differs in FLAT if differs]
    assert f"of the {len(FLAT)} cases of the tests" in page
    assert f"judges {len(differ)} otherwise, {differ.count(0)} of them as followed" in page


@pytest.mark.parametrize(("instruction_id", "arguments", "text", "followed", "differs"), FLAT)
def test_kinds(instruction_id, arguments, text, followed, differs):
    assert score(text, instruction_id, arguments) == followed
    if differs is not None:
        assert library_says(instruction_id, text, arguments) == bool(followed) ^ differs
        if has_words(text):  # else nothing is followed
            assert score(text, instruction_id, arguments, checker="library") == followed ^ differs


# --- what is graded, and how it is scored ---------------------------------------------------------------------------

TWO = ["punctuation:no_comma", "keywords:existence"]
TWO_ARGUMENTS = [{}, {"keywords": ["ice"]}]


def test_share_and_all():
    assert grade("Ice.", TWO, TWO_ARGUMENTS).score == 1.0
    half = grade("Well, snow and ice.", TWO, TWO_ARGUMENTS)
    assert (half.score, half.detail) == (0.5, "not followed: punctuation:no_comma")
    assert half.parts == {"punctuation:no_comma": 0.0, "keywords:existence": 1.0}
    assert grade("Well, snow and ice.", TWO, TWO_ARGUMENTS, scoring="all").score == 0.0
    assert grade("Ice.", TWO, TWO_ARGUMENTS, scoring="all").score == 1.0


def test_an_id_twice_is_two_parts():
    both = [{"keyword": k, "frequency": 1, "relation": LEAST} for k in ("war", "peace")]
    verdict = grade("War.", ["keywords:frequency"] * 2, both)
    assert verdict.parts == {"keywords:frequency": 1.0, "keywords:frequency#2": 0.0}
    assert verdict.score == 0.5


@pytest.mark.parametrize(
    "completion",
    ["", " \n", "...", "<think>ice", "<think>ice</think>", "<think>ice</think>\n<|im_end|>", "<|im_end|>", "\u200b"],
)
def test_an_empty_answer_follows_nothing(completion):
    for chosen in ({}, {"strictness": "loose"}, {"checker": "library"}, {"scoring": "all"}):
        verdict = grade(completion, TWO, TWO_ARGUMENTS, **chosen)
        assert (verdict.status, verdict.score) == (OK, 0.0)
        assert set(verdict.parts.values()) == {0.0}


def test_only_the_answer_is_graded():
    no_comma = ["punctuation:no_comma"]
    assert grade("<think>one, two</think>\nthree", no_comma).score == 1
    assert grade("<think>one</think>\ntwo, three", no_comma).score == 0
    assert grade("one, two</think>\nthree", no_comma, prompt="x<think>\n").score == 1
    assert grade("one, two</think>\nthree", no_comma, prompt=[], prompt_text="x<think>\n").score == 1
    assert grade("three", no_comma, prompt="x<think>\n").score == 0
    assert grade([{"role": "assistant", "content": "three"}], no_comma, prompt=[{"role": "user", "content": "x"}]).score
    assert grade("It is in India.<|im_end|>\n", ["startend:end_checker"], [END]).score == 1


# Strict fails, loose passes: something around the answer, or markdown.
LOOSE = [
    ("punctuation:no_comma", {}, "Sure, here it is:\nNo comma."),
    ("startend:end_checker", END, "The lion lives in India.\nAny questions?"),
    ("startend:quotation", {}, 'Here you are:\n"A lion."'),
    ("startend:quotation", {}, '**"A lion."**'),
    ("detectable_format:json_format", {}, 'Sure!\n{"a": 1}\nDone.'),
    ("combination:repeat_prompt", PROMPT, '**Write a riddle about "ice" for me**\nWhat melts?'),
]


@pytest.mark.parametrize(("instruction_id", "arguments", "text"), LOOSE)
def test_loose(instruction_id, arguments, text):
    assert score(text, instruction_id, arguments) == 0
    assert score(text, instruction_id, arguments, strictness="loose") == 1


def test_loose_variants_are_the_librarys():
    from if_verifiable.common import get_loose_transformations

    text = "one *two*\nthree\n**four**\n\nfive"
    assert set(loose_variants(text)) == set(get_loose_transformations(text))
    assert loose_variants("one, two") == ["one, two"]  # without its only line nothing is left, and that follows nothing
    assert score("one, two", "punctuation:no_comma", strictness="loose") == 0


@pytest.mark.parametrize("chosen", [{"scoring": "sum"}, {"strictness": "lax"}, {"checker": "ours"}])
def test_unknown_settings(chosen):
    with pytest.raises(ValueError, match=f"instruction reward: {next(iter(chosen))}: expected one of"):
        grade("x", TWO, TWO_ARGUMENTS, **chosen)


# --- columns --------------------------------------------------------------------------------------------------------

COMMA = "punctuation:no_comma"


@pytest.mark.parametrize(
    ("ids", "arguments"),
    [
        (["keywords:existence"], [{"keywords": ["ice"], "frequency": None, "N": None}]),
        (["keywords:existence"], '[{"keywords": ["ice"]}]'),
        (["keywords:existence"], ['{"keywords": ["ice"]}']),
        ('["keywords:existence"]', [{"keywords": ["ice"]}]),
        (("keywords:existence",), ({"keywords": ("ice",)},)),
        (np.array(["keywords:existence"]), np.array([{"keywords": np.array(["ice"])}], dtype=object)),
        ([COMMA], None),
        ([COMMA], []),
        ([COMMA], [None]),
        ([COMMA], [{}]),
        (["length_constraints:number_words"], [{"num_words": 1.0, "relation": LEAST}]),
        (["length_constraints:number_words"], [{"num_words": np.int64(1), "relation": LEAST}]),
    ],
)
def test_columns_as_datasets_give_them(ids, arguments):
    verdict = grade("ice", ids, arguments)
    assert (verdict.status, verdict.score) == (OK, 1.0), verdict.detail


@pytest.mark.parametrize("ids", [None, [], "[]"])
def test_a_row_without_instructions(ids):
    assert grade("ice", ids, None).status == NOT_APPLICABLE


@pytest.mark.parametrize(
    ("ids", "arguments", "reason"),
    [
        (["punctuation:no_commas"], [{}], "no instruction is called 'punctuation:no_commas'; did you mean"),
        (["no_comma"], [{}], "did you mean 'punctuation:no_comma'?"),
        ([""], [{}], "no instruction is called ''"),
        ([None], [{}], "no instruction is called None"),
        (["keywords:key_sentences"], [{}], "no instruction is called"),
        ("punctuation:no_comma", [{}], "expected a list, got the text"),
        ({"a": 1}, [{}], "expected a list, got dict"),
        (3, None, "expected a list, got int"),
        ([COMMA, COMMA], [{}], "expected 2 dicts, one an instruction, got 1"),
        ([COMMA], [3], "expected a dict, got int"),
        ([COMMA], ["{"], "expected a dict"),
        ([COMMA], "{", "expected a list"),
        ([COMMA], [{"num_words": 3}], "expected no arguments, got num_words"),
        (["keywords:existence"], [{}], "expected keywords, got none"),
        (["keywords:existence"], None, "expected keywords, got none"),
        (["keywords:existence"], [{"keywords": []}], "a list of texts"),
        (["keywords:existence"], [{"keywords": "ice"}], "a list of texts"),
        (["keywords:existence"], [{"keywords": ["ice", " "]}], "a list of texts"),
        (["keywords:frequency"], [WAR2 | {"relation": "at most"}], "'less than' or 'at least', got 'at most'"),
        (["keywords:frequency"], [WAR2 | {"frequency": -1}], "a whole number, got '-1'"),
        (["keywords:frequency"], [WAR2 | {"frequency": 1.5}], "a whole number, got '1.5'"),
        (["keywords:frequency"], [WAR2 | {"frequency": True}], "a whole number, got 'True'"),
        (["keywords:frequency"], [WAR2 | {"frequency": float("nan")}], "a whole number, got 'nan'"),
        (["keywords:frequency"], [WAR2 | {"frequency": float("inf")}], "a whole number, got 'inf'"),
        (["keywords:frequency"], [WAR2 | {"keyword": ""}], "a text that is not empty"),
        (["keywords:letter_frequency"], [{"letter": "ab", "let_frequency": 1, "let_relation": LESS}], "one character"),
        (["language:response_language"], [{"language": "klingon"}], "the code of a known language, got 'klingon'"),
        (["length_constraints:number_paragraphs"], [{"num_paragraphs": 0}], "a whole number from 1"),
        (["count:words_japanese"], [{"N": 0}], "a whole number from 1"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_read(ids, arguments, reason):
    for completion in ("ice", "", "<think>"):
        verdict = grade(completion, ids, arguments)
        assert verdict.status == UNPARSEABLE
        assert reason in verdict.detail


# --- the benchmarks' rows -------------------------------------------------------------------------------------------

SAID = {
    "kn": "ನಮಸ್ಕಾರ, ನೀವು ಹೇಗಿದ್ದೀರಿ? ನಾನು ಚೆನ್ನಾಗಿದ್ದೇನೆ.",
    "pa": "ਸਤ ਸ੍ਰੀ ਅਕਾਲ, ਤੁਸੀਂ ਕਿਵੇਂ ਹੋ? ਮੈਂ ਠੀਕ ਹਾਂ।",
    "vi": "Xin chào các bạn, hôm nay trời rất đẹp và tôi đi chợ.",
    "ko": "안녕하세요, 오늘 날씨가 아주 좋습니다.",
    "sw": "Watoto wanacheza mpira katika uwanja wa shule kila siku baada ya masomo yao.",
    "hi": "नमस्ते, आज मौसम बहुत अच्छा है और मैं बाजार जा रहा हूँ।",
    "bg": "Добър ден, днес времето е много хубаво и отивам на пазар.",
    "pt": "Bom dia, hoje o tempo está muito bom e vou ao mercado.",
    "mr": "नमस्कार, आज हवामान खूप छान आहे आणि मी बाजारात जात आहे.",
    "ta": "வணக்கம், இன்று வானிலை மிகவும் நன்றாக உள்ளது.",
    "de": "Guten Tag, heute ist das Wetter sehr schön und ich gehe zum Markt.",
    "ne": "नमस्ते, आज मौसम धेरै राम्रो छ र म बजार जाँदैछु।",
}


def sectioned(section_spliter, num_sections):
    return "\n".join(f"{section_spliter} {k}\nSome text." for k in range(1, num_sections + 1))


def first_word_of(num_paragraphs, nth_paragraph, first_word):
    return "\n\n".join(f"{first_word if k == nth_paragraph else 'some'} text." for k in range(1, num_paragraphs + 1))


# Instruction -> an answer that follows it, and one that does not
FOLLOW = {
    "keywords:existence": (lambda keywords: f"So: {', '.join(keywords)}.", lambda keywords: "Nothing of it."),
    "keywords:frequency": (
        lambda keyword, frequency, relation: "So it is. " + (f"{keyword} " * frequency if relation == LEAST else ""),
        lambda keyword, frequency, relation: "So it is. " + (f"{keyword} " * frequency if relation == LESS else ""),
    ),
    "keywords:forbidden_words": (
        lambda forbidden_words: "So it is.",
        lambda forbidden_words: f"{forbidden_words[-1]}!",
    ),
    "keywords:letter_frequency": (
        lambda letter, let_frequency, let_relation: "You. " + letter * (let_frequency if let_relation == LEAST else 0),
        lambda letter, let_frequency, let_relation: "You. " + letter * (let_frequency if let_relation == LESS else 0),
    ),
    "language:response_language": (lambda language: SAID[language], lambda language: LONG_EN),
    "length_constraints:number_sentences": (
        lambda num_sentences, relation: "This is one. " * (num_sentences - (relation == LESS)),
        lambda num_sentences, relation: "This is one. " * (num_sentences - (relation == LEAST)) or "...",
    ),
    "length_constraints:number_paragraphs": (
        lambda num_paragraphs: "\n***\n".join(["Some text."] * num_paragraphs),
        lambda num_paragraphs: "\n\n".join(["Some text."] * num_paragraphs),
    ),
    "length_constraints:number_words": (
        lambda num_words, relation: "word " * (num_words - (relation == LESS)),
        lambda num_words, relation: "word " * (num_words - (relation == LEAST)),
    ),
    "length_constraints:nth_paragraph_first_word": (
        first_word_of,
        lambda num_paragraphs, nth_paragraph, first_word: first_word_of(num_paragraphs + 1, nth_paragraph, first_word),
    ),
    "detectable_content:number_placeholders": (
        lambda num_placeholders: "To [name] " * num_placeholders,
        lambda num_placeholders: "To [name] " * (num_placeholders - 1),
    ),
    "detectable_content:postscript": (
        lambda postscript_marker: f"Dear you.\n\n{postscript_marker} And more.",
        lambda postscript_marker: f"Dear you.\n\n{postscript_marker.replace('.', '')}: And more.",
    ),
    "detectable_format:number_bullet_lists": (
        lambda num_bullets: "So:\n" + "* an item\n" * num_bullets,
        lambda num_bullets: "So:\n" + "* an item\n" * (num_bullets + 1),
    ),
    "detectable_format:constrained_response": (lambda: "My answer is maybe.", lambda: "Perhaps."),
    "detectable_format:number_highlighted_sections": (
        lambda num_highlights: "So *it is* " * num_highlights,
        lambda num_highlights: "So *it is* " * (num_highlights - 1) + "So it is *",
    ),
    "detectable_format:multiple_sections": (
        sectioned,
        lambda section_spliter, num_sections: sectioned(section_spliter, num_sections - 1),
    ),
    "detectable_format:json_format": (lambda: '```json\n{"a": 1}\n```', lambda: "{a: 1}"),
    "detectable_format:title": (lambda: "<<On it>>\nSo.", lambda: "# On it\nSo."),
    "combination:two_responses": (lambda: "So.\n******\nOr so.", lambda: "So.\n***\nOr so."),
    "combination:repeat_prompt": (
        lambda prompt_to_repeat: f"{prompt_to_repeat}\n\nSo it is.",
        lambda prompt_to_repeat: f"Sure. {prompt_to_repeat}\n\nSo it is.",
    ),
    "startend:end_checker": (lambda end_phrase: f"So. {end_phrase}", lambda end_phrase: f"So. {end_phrase} And more."),
    "startend:quotation": (lambda: '"So it is."', lambda: "So it is."),
    "change_case:capital_word_frequency": (
        lambda capital_frequency, capital_relation: "So: " + "WOW " * (capital_frequency - (capital_relation == LESS)),
        lambda capital_frequency, capital_relation: "So: " + "WOW " * (capital_frequency - (capital_relation == LEAST)),
    ),
    "change_case:english_capital": (lambda: LONG_EN.upper(), lambda: LONG_EN),
    "change_case:english_lowercase": (lambda: LONG_EN, lambda: LONG_EN.title()),
    "punctuation:no_comma": (lambda: "So it is.", lambda: "So, it is."),
}


def test_all_rows_of_ifeval():
    rows = rows_of("ifeval/input_data.jsonl")
    assert len(rows) == 324
    seen = set()
    for row in rows:
        verdict = grade("So it is.", row["instruction_id_list"], row["kwargs"], prompt=row["prompt"])
        assert verdict.status == OK, verdict.detail
        assert len(verdict.parts) == len(row["instruction_id_list"])
        for instruction_id, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            right, wrong = (make(**arguments) for make in FOLLOW[instruction_id])
            assert score(right, instruction_id, arguments) == 1, (row["key"], instruction_id, right)
            assert score(wrong, instruction_id, arguments) == 0, (row["key"], instruction_id, wrong)
            if arguments.get("letter") != "!":  # IFEval's own code agrees on answers without a trick
                assert library_says(instruction_id, right, arguments), (row["key"], instruction_id, right)
            seen.add(instruction_id)
    assert seen == set(KINDS) == set(FOLLOW)


PITCH = (
    'Write a short startup pitch for a new kind of ice cream called "Sunnis ice cream". The ice cream should be gentle'
)
PITCH += ' on the stomach. Contain 6 or more exclamation marks "!" in your response.'
SEVERAL = {
    2649: '{"question": "Why did the people of France rise against their king?"}',
    3084: "Gujarat sleeps; a salt wind sings far away in India.",
    286: "Pump the water out, patch the craters, weld new plates. That is all you need!",
    3098: "Write DAILY and READ.\n***\n* a\n* b\n* c\n***\nShort words win.\n***\nStart now.",
    1129: f"{PITCH}\n\nSunnis! Soft! Mild! Cold! Yours! Now!",
    2549: "The gao looked at both.\n\nSpurs won our hearts.\n\nBonding decides it.\nP.P.S Stockton is fine too.",
    1730: '"' + "\n\n".join(f"Section {k}\nTell people why it matters." for k in range(1, 6)) + '"',
    279: "<<green bogs>>\ngreen grass is growing\na gull glides over the bog\ngreat grey fog is gone",
    1021: "PARAGRAPH 1\nA BAD LAW IS STILL A LAW.\n\nPARAGRAPH 2\nBREAKING IT HAS A PRICE THAT OTHERS PAY.",
}


def test_rows_of_ifeval_with_several_instructions():
    """Answers that follow all of a row at once."""
    rows = {row["key"]: row for row in rows_of("ifeval/input_data.jsonl")}
    for key, answer in SEVERAL.items():
        ids, arguments = rows[key]["instruction_id_list"], rows[key]["kwargs"]
        assert len(ids) > 1
        for chosen in ({}, {"strictness": "loose"}, {"scoring": "all"}):
            verdict = grade(answer, ids, arguments, **chosen)
            assert (verdict.status, verdict.score) == (OK, 1.0), verdict.detail


# --- what is counted ------------------------------------------------------------------------------------------------


def test_words_phrases_sentences_paragraphs():
    assert words("Don't stop — it's 1,000.50 **well-known** _things_") == [
        "don't", "stop", "it's", "100050", "well", "known", "things"]  # fmt: skip
    assert words("हिन्दी भाषा") != []
    assert len(words("हिन्दी भाषा")) == 2
    assert count_phrase("new york", "New York and new\nyork, not new yorker") == 2
    assert count_phrase("", "text") == 0
    assert sentences("Dr. No left. He (e.g. he) came! 3.") == ["Dr. No left.", "He (e.g. he) came!"]
    assert paragraphs("a\n\n\n \nb\n***\n\n---\n\nc") == ["a", "b\n***", "c"]


def test_every_language_of_ifeval_is_known():
    for code in library_languages() | {"zh", "zh-cn", "no", "id"}:
        assert grade("So.", ["language:response_language"], [{"language": code}]).status == OK


def test_languages_of_real_texts():
    """MGSM's questions in their own language and in the ten others."""
    texts = {}
    for row in rows_of("mgsm/mgsm.jsonl.gz"):
        texts.setdefault(row["lang"], []).append(row["question"])
    for code, own in texts.items():
        assert sum(is_in_language(text, code) for text in own[:40]) >= 38, code
        for other, foreign in texts.items():
            if other != code:
                assert sum(is_in_language(text, code) for text in foreign[:4]) == 0, (code, other)


def test_a_foreign_name_is_no_foreign_language():
    """Seven of ten letters of an English answer in capitals are enough, nine of ten of an answer in English."""
    text = "we walked home late and it was raining all the night. rue de la république et du général leclerc."
    assert not is_in_language(text, "en")
    assert is_in_language(text, "en", min_share=0.5)
