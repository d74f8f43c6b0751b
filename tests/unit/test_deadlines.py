"""No call to another process may wait for ever: every ray.get and ray.wait states a timeout."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rlplatform", "actors", "rewards", "model", "pretrain")


def endless(source: str) -> list[int]:
    """Lines with ``ray.get`` or ``ray.wait`` without a timeout."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = node.func.value
        is_ray = isinstance(owner, ast.Name) and owner.id == "ray" and node.func.attr in ("get", "wait")
        names = {keyword.arg for keyword in node.keywords}
        if is_ray and not names & {"timeout", None}:
            found.append(node.lineno)
    return found


def test_the_check_sees_what_it_should() -> None:
    assert endless("ray.get(x)\nray.get(x, timeout=3)\nray.wait([x])\nd.get('a')\n") == [1, 3]


def test_every_ray_get_has_a_deadline() -> None:
    bad = [
        f"{path.relative_to(ROOT)}:{line}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in endless(path.read_text(encoding="utf-8"))
    ]
    assert not bad, f"calls that may wait for ever: {bad}"
