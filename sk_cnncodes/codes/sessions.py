"""Sessions that compute codes, in one table per process."""

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
    """The session of some code specs, opened only once per process.

    On the CPU, the highest throughput comes from concurrent runs with one thread each;
    for fewer images than threads, a single run uses all threads.

    Raises
    ------
    BackboneError
        If the engine cannot run the network. The message names the backbone.
    DeviceError
        If a required GPU does not work.
    """
    single_run = single_run_uses_all_threads or not execution.on_cpu
    n_concurrent_runs = 1 if single_run else n_threads
    key = (
        tuple(spec.digest for spec in specs),
        execution,
        n_threads,
        n_concurrent_runs,
    )

    def open_new() -> CodeSession:
        try:
            graphs = backbone.code_graphs(specs)
            session = open_session(
                graphs, execution, n_threads, n_concurrent_runs, calibration
            )
            logger.debug(
                "session of %s on %s, %d concurrent runs, batch size %s",
                backbone.description,
                session.provider,
                session.n_concurrent_runs,
                session.batch_size or "any",
            )
            return session
        except BackboneError as error:
            prefix = f"{backbone.description}: "
            named = str(error).startswith(prefix)
            raise BackboneError(f"{'' if named else prefix}{error}") from error

    return SESSIONS.get(key, open_new)
