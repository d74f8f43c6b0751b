"""What a model is asked about a document: the rubrics of the ``llm`` labeller.

Educational value is FineWeb-Edu's additive scale of 0 to 5 (Penedo et al. 2024, arXiv:2406.17557, appendix F). The
report annotates educational value, fields, domains and safety with prompts it does not give; the others are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pretrain.data.label_schema import DOMAINS, FIELDS, UNKNOWN


@dataclass(frozen=True)
class Rubric:
    """A question with a class or a number as its answer."""

    label: str
    question: str
    values: Mapping[str, str] = field(default_factory=dict)  # class -> what it means; empty: the answer is a number
    scale: Sequence[float] = (0.0, 5.0)  # of a number


def _plain(names: Sequence[str]) -> dict[str, str]:
    return {name: name.replace("_", " ") for name in names}


RUBRICS: dict[str, Rubric] = {
    "educational_value": Rubric(
        "educational_value",
        """How useful is the text for teaching, from primary school to university? Points add up:
1: it gives some information on educational topics, among advertising or irrelevant material.
2: it touches what is taught, but mixes it with other material, or is disorganised or superficial.
3: it is fit for teaching and introduces key concepts, coherent though perhaps incomplete or with extras.
4: it is highly relevant and clear, like a chapter of a textbook or a tutorial, with little that does not belong.
5: it is outstanding: detailed reasoning, easy to follow, nothing that distracts.
0: none of these.""",
    ),
    "field": Rubric(
        "field",
        "Which field of knowledge is the text about? If it is about several, the one it says most on.",
        {**_plain(FIELDS), "none": "about no field: menus, addresses, noise", UNKNOWN: "you cannot tell"},
    ),
    "domain": Rubric(
        "domain",
        "What kind of text is it?",
        {
            **_plain(DOMAINS),
            "web": "a web page that is none of the others",
            "exam": "questions of an exam, with or without answers",
            "conversation": "a dialogue or a chat",
            "other": "none of these",
            UNKNOWN: "you cannot tell",
        },
    ),
    "safety": Rubric(
        "safety",
        "Does the text do harm? Speaking of harm in order to inform, to teach, to report or to tell a story does none.",
        {
            "safe": "it does no harm",
            "sexual": "sexually explicit in order to arouse, or sexual content with minors",
            "violence": "glorifies or incites violence",
            "hate": "demeans or threatens people for what they are",
            "self_harm": "encourages suicide or self-harm",
            "crime": "gives instructions for crimes or weapons",
            "deception": "a scam, malware, or made to deceive",
            UNKNOWN: "you cannot tell",
        },
    ),
}
