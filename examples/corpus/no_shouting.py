"""A filter of one's own: rows and settings in, a decision a row out."""

from pretrain.data.edits import Decision


def no_shouting(rows, *, max_share=0.1):
    """Drop documents in which more than ``max_share`` of the words are in capitals."""
    decisions = []
    for row in rows:
        words = row["text"].split()
        loud = sum(word.isupper() and len(word) > 1 for word in words)
        shouts = loud > max_share * len(words)
        decisions.append(Decision("shouting", f"{loud} of {len(words)} words") if shouts else Decision())
    return decisions
