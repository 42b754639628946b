"""Gives the doctests of the package the same clean start as the tests in ``tests/``."""

from tests.conftest import clean_start

__all__ = ["clean_start"]
