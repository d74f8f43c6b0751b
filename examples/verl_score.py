"""A scoring function as verl takes it. ``verl:examples/verl_score.py:compute_score`` runs it unchanged."""

import re


def compute_score(data_source, solution_str, ground_truth, extra_info=None, format_score=0.1):
    """1 for the right number after ####, ``format_score`` for a wrong one, 0 for none."""
    found = re.findall(r"####\s*(-?[0-9.,]+)", solution_str)
    if not found:
        return {"score": 0.0, "acc": False}
    right = found[-1].replace(",", "").rstrip(".") == ground_truth
    return {"score": 1.0 if right else format_score, "acc": right}
