"""Images per second, from memory and from files."""

from __future__ import annotations

from sk_cnncodes.engines.session import CodeSession
from tests.gpu.context import (
    Context,
    GpuMeter,
    file_throughput,
    session_of,
    session_throughput,
)

# Seconds of one measurement from memory, of which there are three.
_MEMORY_SECONDS = 0.3
# In the order of their worth.
NETWORKS = ("resnet50", "vit_b16", "mobilenet_v2", "vit_s16", "cnncodes-mini")


def throughput(context: Context) -> None:
    """float16 in all batch sizes, from memory; three networks from files."""
    for network in NETWORKS:
        transformer = context.transformer(
            network, precision=context.precision("float16")
        )
        session = session_of(transformer)
        best = 0, 0.0
        for size in context.sizes(64, 128, 256):
            speed = memory(context, session, network, "float16", size)
            best = max(best, (size, speed), key=lambda pair: pair[1])
        if network == "resnet50":
            for size in context.sizes(32, 512):
                memory(context, session, network, "float16", size)
        if network in ("resnet50", "vit_b16", "mobilenet_v2"):
            files(context, network, "float16", 0)
        if network == "resnet50":
            arrays(context, network, best[0])


def precisions(context: Context) -> None:
    """float32 and tf32 from memory with one batch size; float32 from files."""
    (size,) = context.sizes(128)[:1]
    for network in NETWORKS:
        for precision in ("float32", "tf32"):
            transformer = context.transformer(
                network, precision=context.precision(precision)
            )
            memory(context, session_of(transformer), network, precision, size)
            if precision == "float32" and network in ("resnet50", "vit_b16"):
                files(context, network, precision, 0)


def memory(
    context: Context, session: CodeSession, network: str, precision: str, size: int
) -> float:
    """Record images per second of a session given batches from memory."""
    seconds = min(_MEMORY_SECONDS, context.seconds)
    with GpuMeter() as meter:
        crops = context.crops(size, session.image_shape[0])
        values = session_throughput(session, crops, size, seconds)
    name = f"{network} {precision} from memory, {size}"
    context.record(name, **values, **meter.result)
    return float(values["images_per_second"])


def files(context: Context, network: str, precision: str, batch_size: int) -> None:
    """Record images per second from files of 500 x 375; 0 is the default batch."""
    transformer = context.transformer(
        network,
        precision=context.precision(precision),
        batch_size=batch_size or "auto",
    )
    # Long enough that the start of the decoding processes does not matter.
    step = context.few(4096, 16)
    with GpuMeter() as meter:
        values = file_throughput(
            transformer, context.files("500x375"), step, 2 * context.seconds
        )
    name = f"{network} {precision} from 500x375 files, {batch_size or 'auto'}"
    context.record(name, **values, **meter.result)


def arrays(context: Context, network: str, batch_size: int) -> None:
    """Record images per second from a list of arrays, which are resized."""
    transformer = context.transformer(
        network, precision=context.precision("float16"), batch_size=batch_size
    )
    images = list(context.crops(context.few(2048, 16)))
    values = file_throughput(transformer, images, len(images), 0.5 * context.seconds)
    context.record(f"{network} float16 from arrays, {batch_size}", **values)
