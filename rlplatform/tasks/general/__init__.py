"""General RL: tasks over the five abilities of the Qwen3 report (arXiv 2505.09388, section 4.4). docs/general_rl.md.

The report names the abilities and three kinds of reward, and says that there are over twenty tasks; which ones, it does
not say. These are this project's own: templated and small, made for a model of a million parameters to learn.
"""

from rlplatform.tasks.general.suite import TASKS, reward_functions, select, suite
from rlplatform.tasks.general.task import ABILITIES, KINDS, Example, Task, golden

__all__ = ["ABILITIES", "KINDS", "TASKS", "Example", "Task", "golden", "reward_functions", "select", "suite"]
