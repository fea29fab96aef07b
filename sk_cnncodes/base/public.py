"""Public names: what a pickle, a traceback and the documentation call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])


def public(thing: T) -> T:
    """Have a class or function say that it is of `sk_cnncodes`, whatever file holds it.

    A saved model names its classes by module: files can then move without breaking it.
    """
    thing.__module__ = "sk_cnncodes"
    return thing
