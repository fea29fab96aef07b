"""Finding the classifiers whose scores are an output of a network."""

from __future__ import annotations

from collections.abc import Callable

from sk_cnncodes.graphs.operators import AFTER_SCORES, JOINS_SCORES, LINEAR_OPS


def find_classifiers(
    output: str,
    producer: Callable[[str], int | None],
    op: Callable[[int], str],
    data_inputs: Callable[[int], list[str]],
    is_classifier: Callable[[int, frozenset[str]], bool],
    passes_scores: Callable[[int], bool] = lambda index: False,
) -> list[int]:
    """Find the linear layers that compute the scores of an output.

    The search goes from the output towards the image. It passes softmax, reshapes,
    poolings, biases and averages of several classifiers, and stops at linear layers.

    Parameters
    ----------
    output : str
        The tensor of scores.
    producer : callable
        Returns the node that computes a tensor, or None for an input.
    op : callable
        Returns the operator of a node.
    data_inputs : callable
        Returns the tensors that a node reads and that depend on the image.
    is_classifier : callable
        Whether a linear layer computes scores, given its node and the operators
        between it and the output.
    passes_scores : callable
        Whether any other node preserves scores; the search continues at the first
        tensor that it reads.

    Returns
    -------
    list of int
        Nodes, those of the last data inputs first; empty if the output is not scores.
    """
    found: list[int] = []
    waiting, seen, passed = [output], {output}, frozenset[str]()
    while waiting:
        index = producer(waiting.pop())
        if index is None:
            return []  # reached an input of the network
        kind, data = op(index), data_inputs(index)
        passed |= {kind}
        if kind in LINEAR_OPS and len(data) == 1:
            if not is_classifier(index, passed):
                return []
            found.append(index)
            continue
        if kind in JOINS_SCORES or (kind in AFTER_SCORES and len(data) == 1):
            read = data
        elif passes_scores(index):
            read = data[:1]
        else:
            return []
        waiting.extend(name for name in read if name not in seen)
        seen.update(read)
    return found
