"""A reward of one's own: dataset columns arrive as keyword lists, one score a completion goes back."""


def brevity(prompts, completions, answer, **kwargs):
    """1 for a short completion, 0 for one of 400 characters or more."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [1.0 if len(text) < 400 else 0.0 for text in texts]
