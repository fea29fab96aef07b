"""The callbacks of scikit-learn's estimators, from scikit-learn 1.9 on."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

# Subtasks that a fit is shown as: each is an object that lives as long as the fit.
_N_PARTS = 100
# Attribute of an estimator whose fit is shown.
_TASK = "_fit_task"

Method = TypeVar("Method", bound=Callable[..., Any])

if TYPE_CHECKING:

    class CallbackSupportMixin:
        """`sklearn.callback.CallbackSupportMixin`."""

    def with_callbacks(method: Method) -> Method:
        """`sklearn.callback.with_callbacks`."""

else:
    try:
        from sklearn.callback import CallbackSupportMixin, with_callbacks
    except ImportError:

        class CallbackSupportMixin:
            """Stands in for the mixin of newer versions."""

        def with_callbacks(method: Method) -> Method:
            """Return the method, which has no callbacks to end."""
            return method


def fit_task(name: str) -> Callable[[Method], Method]:
    """Decorator of a method `fit` or `fit_transform`, which callbacks show as a task.

    Methods that it calls on the same estimator belong to its task.

    Parameters
    ----------
    name : str
        Name of the task.
    """

    def decorated(method: Method) -> Method:
        @with_callbacks
        def as_task(estimator: Any, X: Any, y: Any = None) -> Any:
            task = _Task(estimator, name, X, y)
            setattr(estimator, _TASK, task)
            try:
                result = method(estimator, X, y)
            finally:
                delattr(estimator, _TASK)
            task.end()
            return result

        @wraps(method)
        def method_or_task(estimator: Any, X: Any, y: Any = None) -> Any:
            callbacks = getattr(estimator, "_skl_callbacks", None)
            if not callbacks or hasattr(estimator, _TASK):
                return method(estimator, X, y)
            return as_task(estimator, X, y)

        return cast("Method", method_or_task)

    return decorated


def shown_share(estimator: Any) -> Callable[[float], None] | None:
    """What shows the share of the work that is done, if a fit of it is shown."""
    task = getattr(estimator, _TASK, None)
    return None if task is None else task.show


class _Task:
    """Tells the callbacks of an estimator how far its fit is."""

    def __init__(self, estimator: Any, name: str, X: Any, y: Any) -> None:
        self._data = {"estimator": estimator, "X": X, "y": y}
        self._context = estimator._init_callback_context(
            task_name=name, max_subtasks=_N_PARTS
        )
        self._context.call_on_fit_task_begin(**self._data)
        self._n_finished = 0

    def show(self, share: float) -> None:
        """Show that a share of the work is done, from 0 to 1."""
        while self._n_finished < int(share * _N_PARTS):
            self._n_finished += 1
            part = self._context.subcontext(task_name="images")
            part.call_on_fit_task_begin(**self._data)
            part.call_on_fit_task_end(**self._data)

    def end(self) -> None:
        """Show that the fit is done."""
        self._context.call_on_fit_task_end(**self._data, reconstruction_attributes={})
