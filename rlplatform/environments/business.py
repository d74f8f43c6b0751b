"""A shop's API with a state, and rules that the API does not enforce: those are the model's to keep.

    prompt   Refund order 2041.
    call     get_order {"order": 2041}          result  lamp, price 30, delivered, 12 days
    call     refund {"order": 2041, "amount": 30}   result  refunded 30
    answer   done                              or, had it been 40 days: no call, and  refused

Success is the state at the end, compared with the one that the rules lead to, and the answer. Level 1 cancels, level 2
refunds, level 3 exchanges (stock, refund, new order). In half of the rows a rule forbids it.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlplatform.environments.text import Policy, say, script
from rlplatform.environments.tools import Tool, ToolEnvironment, ToolError, call_text

LEVELS = (1, 2, 3)
ITEMS = ("lamp", "chair", "kettle", "clock", "radio", "shelf")
STATUSES = ("placed", "shipped", "delivered")
MAX_DAYS = 30
RULES = {
    1: "Cancel only orders that are placed.",
    2: f"Refund only delivered orders of at most {MAX_DAYS} days, at their price.",
    3: f"Exchange only delivered orders of at most {MAX_DAYS} days, and only if the new item is in stock: refund the "
    "price, then place the new order.",
}
ANSWERS = "Look at the order first. Answer done, or refused if the rule forbids it."
_TOOLS_OF = {
    1: ("get_order", "cancel_order"),
    2: ("get_order", "refund"),
    3: ("get_order", "get_stock", "refund", "place_order"),
}
_ORDER = {"order": {"type": "integer"}}


class Business(ToolEnvironment):
    """The row's ``state`` and ``expected`` are JSON texts; every episode works on a copy of its own."""

    def tools(self) -> Sequence[Tool]:
        self._state: dict[str, Any] = json.loads(self.row["state"])
        every = [
            Tool("get_order", "Show an order.", _ORDER, self._get_order),
            Tool("cancel_order", "Cancel an order.", _ORDER, self._cancel_order),
            Tool("get_stock", "How many of an item.", {"item": {"type": "string"}}, self._get_stock),
            Tool("refund", "Pay back an amount.", {**_ORDER, "amount": {"type": "integer"}}, self._refund),
            Tool("place_order", "Order an item.", {"item": {"type": "string"}}, self._place_order),
        ]
        return [tool for tool in every if tool.name in _TOOLS_OF[int(self.row["level"])]]

    def grade(self, answer: str) -> tuple[bool, Mapping[str, float], str]:
        state = self._state == json.loads(self.row["expected"])
        said = answer.strip().removesuffix(".").lower() == self.row["answer"]
        detail = "" if state else f"the state is {json.dumps(self._state)}"
        return state and said, {"state": float(state), "answer": float(said)}, detail or f"answered {answer[:60]!r}"

    # --- the API ----------------------------------------------------------------------------------------------------

    def _order(self, order: int) -> dict[str, Any]:
        orders: dict[str, dict[str, Any]] = self._state["orders"]
        if not 0 <= order < 10**9 or str(int(order)) not in orders:
            raise ToolError("no such order")
        return orders[str(int(order))]

    def _get_order(self, order: int) -> str:
        found = self._order(order)
        return f"{found['item']}, price {found['price']}, {found['status']}, {found['days']} days"

    def _cancel_order(self, order: int) -> str:
        found = self._order(order)
        if found["status"] in ("cancelled", "delivered"):
            raise ToolError(f"order {order} is {found['status']}")
        found["status"] = "cancelled"
        return "cancelled"

    def _get_stock(self, item: str) -> str:
        if item not in self._state["stock"]:
            raise ToolError("no such item")
        return str(self._state["stock"][item])

    def _refund(self, order: int, amount: int) -> str:
        self._order(order)
        if not 0 < amount < 10**9:
            raise ToolError("the amount must be positive, and below 1000000000")
        key = str(int(order))  # JSON Schema takes 204.0 for an integer
        if key in self._state["refunds"]:
            raise ToolError(f"order {key} is refunded already")
        self._state["refunds"][key] = int(amount)
        return f"refunded {amount}"

    def _place_order(self, item: str) -> str:
        if self._state["stock"].get(item, 0) < 1:
            raise ToolError("not in stock")
        self._state["stock"][item] -= 1
        number = max(int(key) for key in self._state["orders"]) + 1
        price = self._state["prices"][item]
        self._state["orders"][str(number)] = {"item": item, "price": price, "status": "placed", "days": 0}
        return f"order {number}"


# --- rows -----------------------------------------------------------------------------------------------------------


def make_row(rng: random.Random, level: int) -> dict[str, Any]:
    """One request. ``expected`` is written down here, without the API."""
    prices = {item: rng.randrange(5, 100) for item in ITEMS}
    stock = {item: rng.choice([0, rng.randrange(1, 9)]) for item in ITEMS}
    numbers = rng.sample(range(1000, 10_000), 2)
    orders = {str(number): _draw_order(rng, prices) for number in numbers}
    number, order, allowed = str(numbers[0]), orders[str(numbers[0])], rng.random() < 0.5
    new = rng.choice([item for item in ITEMS if item != order["item"]])
    if level == 1:
        order["status"] = "placed" if allowed else "shipped"
    else:
        broken = rng.choice(["status", "days", "stock"][:level])
        order["status"] = "delivered" if allowed or broken != "status" else "shipped"
        order["days"] = rng.randrange(31, 90) if not allowed and broken == "days" else rng.randrange(1, 31)
        stock[new] = 0 if not allowed and broken == "stock" else rng.randrange(1, 9)
    state = {"orders": orders, "stock": stock, "prices": prices, "refunds": {}}
    expected: dict[str, Any] = copy.deepcopy(state)
    if allowed and level == 1:
        expected["orders"][number]["status"] = "cancelled"
    elif allowed:
        expected["refunds"][number] = order["price"]
        if level == 3:
            expected["stock"][new] -= 1
            latest = str(max(numbers) + 1)
            expected["orders"][latest] = {"item": new, "price": prices[new], "status": "placed", "days": 0}
    asked = {1: f"Cancel order {number}.", 2: f"Refund order {number}.", 3: f"Exchange order {number} for a {new}."}
    return {
        "prompt": [
            {"role": "system", "content": f"{RULES[level]} {ANSWERS}"},
            {"role": "user", "content": asked[level]},
        ],
        "answer": "done" if allowed else "refused",
        "state": json.dumps(state),
        "expected": json.dumps(expected),
        "order": int(number),
        "new_item": new,
    }


def _draw_order(rng: random.Random, prices: Mapping[str, int]) -> dict[str, Any]:
    item = rng.choice(ITEMS)
    return {"item": item, "price": prices[item], "status": rng.choice(STATUSES), "days": rng.randrange(1, 90)}


def expert(row: Mapping[str, Any], *, thinking: bool = True) -> Policy:
    """Looks first, keeps the rules, and goes by what the API answers, not by the row's answer."""
    order, new, level = row["order"], row["new_item"], int(row["level"])

    def called(thought: str, name: str, **arguments: Any) -> str:
        return say(call_text(name, arguments), thought if thinking else None)

    def said(thought: str, answer: str) -> str:
        return say(answer, thought if thinking else None)

    def step(results: list[str]) -> str:
        if not results:
            return called(f"look at {order}", "get_order", order=order)
        match = re.fullmatch(r"\w+, price (\d+), (\w+), (\d+) days", results[0])
        if match is None:
            return said(results[0], "refused")
        price, status, days = int(match[1]), match[2], int(match[3])
        if status != ("placed" if level == 1 else "delivered"):
            return said(f"it is {status}", "refused")
        if level > 1 and days > MAX_DAYS:
            return said(f"{days} > {MAX_DAYS}", "refused")
        rest = results[1:]
        if level == 1:
            return said("done", "done") if rest else called("it is placed", "cancel_order", order=order)
        if level == 3 and not rest:
            return called(f"is a {new} there", "get_stock", item=new)
        if level == 3 and rest[0] == "0":
            return said(f"no {new}", "refused")
        rest = rest[1:] if level == 3 else rest
        if not rest:
            return called(f"{days} days, price {price}", "refund", order=order, amount=price)
        if level == 3 and len(rest) == 1:
            return called(f"order a {new}", "place_order", item=new)
        return said("done", "done")

    return script(step)
