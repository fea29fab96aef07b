"""Finding the classifiers whose scores are an output of a network."""

from __future__ import annotations

from collections.abc import Callable

from sk_cnncodes.graphs.operators import (
    AFTER_SCORES,
    JOINS_SCORES,
    LINEAR_OPS,
    ML_CLASSIFIERS,
)


def find_classifiers(
    output: str,
    producer: Callable[[str], int | None],
    op: Callable[[int], str],
    data_inputs: Callable[[int], list[str]],
    is_classifier: Callable[[int, frozenset[str]], bool],
    scores_read: Callable[[int], list[str] | None] = lambda index: None,
    compares: Callable[[int], bool] = lambda index: False,
) -> list[int]:
    """Find the layers that compute the scores of an output.

    The search goes from the output towards the image. It passes softmax, reshapes,
    poolings, biases and averages of several classifiers, and stops at linear layers and
    their equivalents.

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
        Whether a layer computes scores, given its node and the operators between it
        and the output, on all branches that it reaches.
    scores_read : callable
        The scores among the tensors that a node reads; None to judge by its operator.
    compares : callable
        Whether another node than a linear layer computes scores.

    Returns
    -------
    list of int
        Nodes, those of the last data inputs first; empty if the output is not scores.
    """
    found: list[int] = []
    walked: dict[int, list[str]] = {}
    waiting, seen = [output], {output}
    while waiting:
        index = producer(waiting.pop())
        if index is None:
            return []  # reached an input of the network
        if index in walked:
            continue  # reached through another of its outputs
        kind, data, read = op(index), data_inputs(index), scores_read(index)
        if read is None:
            is_linear = kind in LINEAR_OPS and len(data) == 1
            if is_linear or kind in ML_CLASSIFIERS or compares(index):
                found.append(index)
                read = []
            elif kind in JOINS_SCORES or (kind in AFTER_SCORES and len(data) == 1):
                read = data
            else:
                return []
        walked[index] = read
        waiting.extend(name for name in read if name not in seen)
        seen.update(read)
    # Nodes are in topological order: what follows a node is known before the node.
    passed: dict[int, frozenset[str]] = {}
    for index in sorted(walked, reverse=True):
        passed[index] = passed.get(index, frozenset()) | {op(index)}
        for name in walked[index]:
            source = producer(name)
            if source is not None:
                passed[source] = passed.get(source, frozenset()) | passed[index]
    return found if all(is_classifier(i, passed[i]) for i in found) else []
