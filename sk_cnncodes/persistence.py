"""What a transformer takes along when it leaves its process."""

from __future__ import annotations

from sk_cnncodes.backbone import Backbone, CodeSpec
from sk_cnncodes.codegraph import CodeGraph
from sk_cnncodes.runtime import CodeSession, Device, open_session, usable_threads


def working_graph(backbone: Backbone, spec: CodeSpec) -> tuple[CodeGraph, CodeSession]:
    """The most capable code graph of a spec that runs, and its session on the CPU.

    Raises
    ------
    BackboneError
        If none runs.
    """
    graphs = list(backbone.code_graphs([spec]))
    device = Device(None, required=True)
    session = open_session(graphs, device, usable_threads(-1))
    return next(g for g in graphs if g.batch_size == session.batch_size), session
