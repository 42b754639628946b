"""Progress bars, where someone watches."""

from __future__ import annotations

import os
import sys
from contextvars import ContextVar, Token
from typing import Any

__all__ = ["Progress"]

# Seconds before a bar shows itself by its own choice: what is over sooner needs none.
_PATIENCE = 1.0

# What surrounds a bar: nothing, a bar, or a call that is to show none.
_around: ContextVar[str] = ContextVar("_around", default="nothing")


class Progress:
    """Shows on the standard error how much of some work is done.

    :param progress: True shows a bar. False shows none, nor do bars inside that have not been asked
        for. None shows one on a terminal or in a notebook, by the first of several processes, once
        it has taken a second; but none under CI, whose environment variable says so.
    :param total: pieces of work, or None if nobody knows.
    :param description: stands in front.
    :param done: pieces that are done already.
    :raises ValueError: if ``progress`` is something else.
    """

    def __init__(
        self, progress: bool | None, total: int | None, description: str | None, done: int = 0
    ) -> None:
        if not (progress is None or isinstance(progress, bool)):
            raise ValueError(f"`progress` must be True, False or None, was {progress!r}")
        self.progress, self.total, self.description = progress, total, description
        self.done = done
        self._bar: Any = None
        self._token: Token[str] | None = None

    def __enter__(self) -> Progress:
        around = _around.get()
        shows = self.progress
        if shows is None:
            shows = around != "silence" and _is_watched()
        silent = self.progress is False or (self.progress is None and around == "silence")
        self._token = _around.set("silence" if silent else "a bar" if shows else around)
        if shows:
            from tqdm.auto import tqdm

            self._bar = tqdm(
                total=self.total,
                desc=self.description,
                initial=self.done,
                delay=_PATIENCE if self.progress is None else 0.0,
                leave=around != "a bar",
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._token is not None:
            _around.reset(self._token)
        self._bar = self._token = None

    def update(self, count: int = 1, **shown: str) -> None:
        """Counts pieces as done.

        :param count: how many.
        :param shown: what stands behind the bar, by name.
        """
        if self._bar is None:
            return
        if shown:
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(count)


def _is_watched() -> bool:
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        return False
    if os.environ.get("RANK", "0") != "0":
        return False
    return _is_terminal() or _is_notebook()


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _is_notebook() -> bool:
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if get_ipython is None else get_ipython()
    return "IPKernelApp" in getattr(shell, "config", {})
