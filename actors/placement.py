"""Room for actors: asked for before anything starts, and refused within seconds with the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from rlplatform.roles import RunStopped


def check_resources(demand: Mapping[str, Sequence[Mapping[str, float]]], *, change: str) -> None:
    """Compare the bundles of every stage with the resources of the whole cluster, before anything starts.

    Args:
        demand: stage -> its bundles, e.g. ``{"rollout": [{"CPU": 1.0}, {"CPU": 1.0}]}``; a bundle must fit one node.
        change: the config keys that lower the demand, named in the error.

    Raises:
        RunStopped: the demand does not fit; the message lists demand, supply per node and ``change``.
    """
    nodes = [(node["NodeManagerHostname"], dict(node["Resources"])) for node in ray.nodes() if node["Alive"]]
    free = [dict(resources) for _, resources in nodes]
    bundles = sorted((b for bs in demand.values() for b in bs), key=lambda b: -max(b.values(), default=0.0))
    for bundle in bundles:
        home = next((n for n in free if all(n.get(k, 0.0) >= v - 1e-9 for k, v in bundle.items())), None)
        if home is None:
            raise RunStopped(_report(demand, nodes, change))
        for key, value in bundle.items():
            home[key] = home.get(key, 0.0) - value


def _report(
    demand: Mapping[str, Sequence[Mapping[str, float]]], nodes: Sequence[tuple[str, Mapping[str, float]]], change: str
) -> str:
    def show(resources: Mapping[str, float]) -> str:
        return ", ".join(f"{k} {resources[k]:g}" for k in ("CPU", "GPU") if resources.get(k)) or "no CPU, no GPU"

    lines = ["the cluster cannot hold what the configuration asks for."]
    for stage, bundles in demand.items():
        lines += [f"  demand  {stage}: {len(bundles)} x ({show(bundles[0])})" if bundles else f"  demand  {stage}: 0"]
    lines += [f"  supply  {host}: {show(resources)}" for host, resources in nodes]
    return "\n".join([*lines, f"Change {change}, or add nodes."])


def place(stage: str, bundles: list[dict[str, float]], change: str, timeout_s: float) -> PlacementGroup:
    check_resources({stage: bundles}, change=change)
    group = placement_group(bundles, strategy="PACK")
    if not group.wait(timeout_s):
        remove_placement_group(group)
        available = ", ".join(f"{k} {ray.available_resources().get(k, 0.0):g}" for k in ("CPU", "GPU"))
        raise RunStopped(
            f"{stage}: no place for {len(bundles)} x {bundles[0]} within {timeout_s:g} s; the cluster is large enough, "
            f"but only {available} are free now. Change {change}, or stop what holds the rest."
        )
    return group
