"""A reward that compares the completions of one prompt: of the right ones, the shorter the better."""

from rewards.base import groupwise
from rewards.format import text_of


@groupwise
def concise(completions, answer, *, worst: float = 0.5, **columns):
    """1 for the shortest completion that contains the answer, ``worst`` for the longest such one, 0 for wrong ones."""
    texts = [text_of(completion) for completion in completions]
    right = [len(text) for text, gold in zip(texts, answer, strict=True) if gold in text]
    shortest, longest = min(right, default=0), max(right, default=0)
    step = (1.0 - worst) / max(1, longest - shortest)
    return [
        1.0 - step * (len(text) - shortest) if gold in text else 0.0 for text, gold in zip(texts, answer, strict=True)
    ]
