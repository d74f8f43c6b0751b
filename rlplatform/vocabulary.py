"""May a student learn from a teacher's next-token distribution? Only where id i is the same token for both.

Names, sizes or an equal number of ids prove nothing: the maps are compared entry by entry, and so is what both make of
probe strings (normaliser and pre-tokeniser are in no map).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES = (
    "Hello, world! It's 1234567890 + 0.5.",
    "  two spaces\n\n\tand a tab  \r\n",
    "naïve café e\u0301 ﬁ Ångström",
    "你好，世界。日本語とひらがな 한국어 العربية हिन्दी ไทย",
    "def f(x):\n    return x**2  # 🙂👩‍👩‍👧",
    r"\frac{1}{2} \le x^{2}, \boxed{42}",
    "<think>\n\n</think>\n\nyes /no_think <|im_start|>user<|im_end|><tool_call>",
)
_MAX_SHOWN = 5


class VocabularyError(ValueError):
    """Teacher and student do not speak of the same tokens; the message says where they part."""


def check_vocabularies(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    *,
    student_rows: int,
    teacher_rows: int,
    probes: Sequence[str] = PROBES,
) -> int:
    """The number of ids that both share: cut both models' logits to ``[:, :n]`` before they are compared.

    Embeddings are padded to different sizes (151,936 and 152,064 for one Qwen vocabulary of 151,669 ids): rows beyond
    the last id stand for no token, and what mass a model gives them must not count.

    Args:
        student_rows, teacher_rows: columns of each model's logits, i.e. rows of its output matrix.

    Raises:
        VocabularyError: an id, a special token or a probe differs, or a model has fewer rows than ids.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    num_ids, num_theirs = max(ours.values()) + 1, max(theirs.values()) + 1
    different = sorted(
        (token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)),
        key=lambda token: (ours.get(token, theirs.get(token)), token),
    )
    if different:
        shown = ", ".join(f"{t!r}: {ours.get(t)} and {theirs.get(t)}" for t in different[:_MAX_SHOWN])
        raise VocabularyError(
            f"expected student and teacher to have the same vocabulary, {len(different)} tokens differ (sizes "
            f"{len(ours)} and {len(theirs)}, ids up to {num_ids - 1} and {num_theirs - 1}); student's and teacher's "
            f"id of {shown}; distil from a teacher with this tokenizer, or train on its texts (off-policy) instead"
        )
    for name, rows in (("student", student_rows), ("teacher", teacher_rows)):
        if rows < num_ids:
            raise VocabularyError(
                f"the {name}'s logits have {rows} columns for {num_ids} token ids: the model and its tokenizer do not "
                "belong together"
            )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(student, name) != getattr(teacher, name):
            raise VocabularyError(
                f"{name}: the student's is {getattr(student, name)}, the teacher's {getattr(teacher, name)}: they end "
                "or pad their texts differently; save one setting in both tokenizer folders"
            )
    for probe in probes:
        a, b = (t(probe, add_special_tokens=False)["input_ids"] for t in (student, teacher))
        if a != b:
            raise VocabularyError(
                f"the tokenizers have one vocabulary and split text differently: {probe!r} is {a} for the student, {b} "
                "for the teacher (merges, normaliser, pre-tokeniser or added tokens differ)"
            )
    return num_ids
