"""Where a network can be cut, and why there.

Dominators, block outputs, the penultimate tensor, channel axes, and what a layer costs.
Never runs a model: whoever needs a run passes it. Imports `graphs`.
"""
