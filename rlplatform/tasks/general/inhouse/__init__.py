"""The report's in-house evaluations (arXiv 2505.09388, section 4.7), rebuilt from its one-sentence descriptions.

A module each, with a generator for a dataset stage, a scorer, and worked answers that pass and fail. What the report
leaves open (sizes, formulas, how turns count) is this project's own choice, stated in the module. Its figures are for
its own unpublished sets: stand beside them, but compare with care.
"""

from rlplatform.tasks.general.inhouse import counterfactqa, lengthctrl, thinkfollow, tooluse

__all__ = ["counterfactqa", "lengthctrl", "thinkfollow", "tooluse"]
