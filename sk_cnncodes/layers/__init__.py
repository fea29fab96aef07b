"""Where a network can be cut, and why.

Dominators, block outputs, the penultimate tensor, channel axes, and the cost of layers.
Never runs a model: the caller passes a function that does. Imports `graphs`.
"""
