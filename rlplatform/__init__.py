"""rlplatform: the algorithm and its face. Importing it loads neither ray, vllm, deepspeed nor torch."""

from rlplatform.guard import check_top_level_names

__version__ = "0.1.0"

check_top_level_names()
