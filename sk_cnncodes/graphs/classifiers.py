"""Where scores come from: the classifiers before an output of a network."""

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
    """Nodes of the linear layers after which only scores follow.

    The walk goes from the output towards the image. It passes softmax, reshapes,
    poolings, biases and averages of several classifiers, and ends at linear layers.

    Parameters
    ----------
    output : str
        The tensor of scores.
    producer : callable
        Gives the node that computes a tensor; None for an input.
    op : callable
        Gives the operator of a node.
    data_inputs : callable
        Gives the tensors that a node reads and that depend on the image.
    is_classifier : callable
        Whether a linear layer gives scores, from its node and from the operators that
        were passed between it and the output.
    passes_scores : callable
        Whether another node leaves scores what they are; the first tensor that it
        reads is where the walk goes on.

    Returns
    -------
    list of int
        In the order of the classifiers; empty where the output holds no scores.
    """
    found: list[int] = []
    waiting, seen, passed = [output], {output}, frozenset[str]()
    while waiting:
        index = producer(waiting.pop())
        if index is None:
            return []  # an input of the network
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
        # The last one is taken first.
        waiting.extend(name for name in reversed(read) if name not in seen)
        seen.update(read)
    return found
