"""The error of a configuration that cannot run, and the check that raises it."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot run; the message says where, what was expected and what to change."""


def require(condition: bool, message: str) -> None:
    """Raises ``ConfigError`` with ``message`` where ``condition`` does not hold."""
    if not condition:
        raise ConfigError(message)
