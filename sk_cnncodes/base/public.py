"""Decorator for public names: their module in pickles, tracebacks and docs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])


def public(obj: T) -> T:
    """Set the module of a class or function to `sk_cnncodes`.

    Saved models name classes by module; files can then move without breaking them.
    """
    obj.__module__ = "sk_cnncodes"
    return obj
