"""The session that computes some codes, from the table of this process."""

from __future__ import annotations

from sk_cnncodes.backbones.backbone import Backbone
from sk_cnncodes.backbones.spec import CodeSpec
from sk_cnncodes.backbones.stored import StoredBackbone
from sk_cnncodes.base.exceptions import BackboneError
from sk_cnncodes.base.logs import logger
from sk_cnncodes.engines.execution import Execution
from sk_cnncodes.engines.quantisation import Calibration
from sk_cnncodes.engines.session import CodeSession, open_session
from sk_cnncodes.engines.session_table import SessionTable

SESSIONS: SessionTable[CodeSession] = SessionTable()


def code_session(
    backbone: Backbone | StoredBackbone,
    specs: list[CodeSpec],
    execution: Execution,
    n_threads: int,
    calibration: Calibration | None,
    *,
    single_run_uses_all_threads: bool,
) -> CodeSession:
    """The session of code specs, loaded once however many threads ask.

    On the CPU, several runs with one thread each go on at once, which gives the most
    images per second; for fewer images than threads, one run has all threads.

    Raises
    ------
    BackboneError
        If the engine does not run the network; it names the backbone.
    DeviceError
        If a required GPU does not work.
    """
    one = single_run_uses_all_threads or not execution.on_cpu
    n_concurrent_runs = 1 if one else n_threads
    key = (
        tuple(spec.digest for spec in specs),
        execution,
        n_threads,
        n_concurrent_runs,
    )

    def make() -> CodeSession:
        try:
            graphs = backbone.code_graphs(specs)
            session = open_session(
                graphs, execution, n_threads, n_concurrent_runs, calibration
            )
            logger.debug(
                "session of %s on %s, %d runs at once, batch size %s",
                backbone.description,
                session.provider,
                session.n_concurrent_runs,
                session.batch_size or "any",
            )
            return session
        except BackboneError as error:
            where = f"{backbone.description}: "
            known = str(error).startswith(where)
            raise BackboneError(f"{'' if known else where}{error}") from error

    return SESSIONS.get(key, make)
