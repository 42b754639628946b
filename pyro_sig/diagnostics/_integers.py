"""Checks of numbers that count something."""

from __future__ import annotations


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raises unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not (isinstance(value, int) and value >= least):
        raise ValueError(f"`{name}` must be an integer of at least {least}, but was {value!r}.")
