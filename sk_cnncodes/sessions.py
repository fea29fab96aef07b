"""The session that computes some codes, from the table of this process."""

from __future__ import annotations

from sk_cnncodes.backbone import Backbone, CodeSpec
from sk_cnncodes.exceptions import BackboneError
from sk_cnncodes.execution import Execution
from sk_cnncodes.persistence import StoredBackbone
from sk_cnncodes.quantisation import Calibration
from sk_cnncodes.runtime import CodeSession, open_session
from sk_cnncodes.session_table import SESSIONS


def code_session(
    backbone: Backbone | StoredBackbone,
    specs: list[CodeSpec],
    execution: Execution,
    n_threads: int,
    calibration: Calibration | None,
    *,
    few: bool,
) -> CodeSession:
    """The session of code specs, loaded once however many threads ask.

    On the CPU, runs of one thread each go on at once, which gives the most images a
    second; for `few` images, one run has all threads.

    Raises
    ------
    BackboneError
        If the engine does not run the network; it names the backbone.
    DeviceError
        If a required GPU does not work.
    """
    n_callers = 1 if few or not execution.on_cpu else n_threads
    key = (tuple(spec.digest for spec in specs), execution, n_threads, n_callers)

    def make() -> CodeSession:
        try:
            graphs = backbone.code_graphs(specs)
            return open_session(graphs, execution, n_threads, n_callers, calibration)
        except BackboneError as error:
            where = f"{backbone.description}: "
            known = str(error).startswith(where)
            raise BackboneError(f"{'' if known else where}{error}") from error

    return SESSIONS.get(key, make)
