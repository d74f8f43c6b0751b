"""Rewards of installed packages: the entry point group ``rlplatform.rewards``.

A distribution that brings rewards names them in its pyproject.toml::

    [project.entry-points."rlplatform.rewards"]
    brevity = "my_package.rewards:brevity"

Finding them reads the metadata of what is on ``sys.path`` (some 5 ms) and imports nothing; ``rewards.base.resolve``
imports the one that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points

GROUP = "rlplatform.rewards"


@dataclass(frozen=True)
class Installed:
    """One entry point, as its distribution declares it."""

    name: str  # what a config calls the reward
    target: str  # package.module:fn
    distribution: str  # name and version, e.g. "my-rewards 1.2"

    @property
    def line(self) -> str:
        """As it stands in the distribution's entry_points.txt."""
        return f"{self.name} = {self.target}"


def installed(name: str = "") -> list[Installed]:
    """Every entry point of the group, or those called ``name``, in the order of their names.

    Of a distribution that is on ``sys.path`` twice the first counts, as for imports.
    """
    found = entry_points(group=GROUP, name=name) if name else entry_points(group=GROUP)
    declared = []
    for point in found:
        known = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "a distribution without a name"
        declared.append(Installed(point.name, point.value, known))
    return sorted(declared, key=lambda one: (one.name, one.distribution))
