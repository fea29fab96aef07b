"""torch on the same files: eager and compiled models, from memory and by DataLoader."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

from PIL import Image

from tests.gpu.context import Context, GpuMeter, throughput

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Files:
    """A dataset of JPEG files, as torch's examples write it."""

    def __init__(self, paths: list[str]) -> None:
        from torchvision import transforms

        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.Resize(256),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize(_MEAN, _STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def torch_pipeline(context: Context) -> None:
    """Eager first: a compilation that takes too long then loses only itself."""
    try:
        import torch
        import torchvision
    except Exception as error:  # or parts of them that do not fit
        context.record("not there", why=str(error))
        return
    context.record("versions", torch=torch.__version__, vision=torchvision.__version__)
    torch.backends.cudnn.benchmark = True
    models = {
        name: build(context, make)
        for name, make in (
            ("vit_b16", torchvision.models.vit_b_16),
            ("resnet50", torchvision.models.resnet50),
        )
    }
    sizes = [128, 256] if context.gpu else [4]
    for name, model in models.items():
        from_memory(context, f"{name} eager", model, sizes)
    for name, model in models.items():
        from_files(context, f"{name} eager", model, "500x375")
    for name, model in models.items():
        compiled = torch.compile(model)
        start = time.perf_counter()
        try:
            # One size: each new one is another compilation.
            from_memory(context, f"{name} compiled", compiled, sizes[-1:])
        except Exception as error:
            context.record(f"{name} is not compiled", error=str(error)[:300])
            continue
        seconds = time.perf_counter() - start
        context.record(f"{name} compilation and measurement", seconds=seconds)
        from_files(context, f"{name} compiled", compiled, "500x375")
    from_files(context, "resnet50 eager", models["resnet50"], "4000x3000")


def build(context: Context, make: Callable[..., Any]) -> Any:
    """A network in float16 without its classifier, channels last."""
    import torch

    device = context.device
    model = make(weights=None).eval().to(device)
    model.requires_grad_(False)
    if hasattr(model, "fc"):
        model.fc = torch.nn.Identity()
        model = model.to(memory_format=torch.channels_last)
    else:
        model.heads = torch.nn.Identity()
    return model.half() if context.gpu else model


def from_memory(context: Context, name: str, model: Any, sizes: list[int]) -> None:
    """Batches of uint8 in page-locked memory, copied and normalised on the GPU."""
    import torch

    device = torch.device(context.device)
    mean = torch.tensor(_MEAN, device=device).mul(255).view(1, 3, 1, 1)
    std = torch.tensor(_STD, device=device).mul(255).view(1, 3, 1, 1)
    for size in sizes:
        crops = torch.from_numpy(context.crops(size))
        if context.gpu:
            crops = crops.pin_memory()

        def work(count: int, crops: Any = crops, size: int = size) -> None:
            codes = []
            with torch.inference_mode():
                for _ in range(count // size):
                    pixels = crops.to(device, non_blocking=True).permute(0, 3, 1, 2)
                    pixels = (pixels.float() - mean) / std
                    codes.append(model(pixels.half() if context.gpu else pixels))
                torch.cat(codes).float().cpu()

        values = throughput(work, 2 * size, min(0.3, context.seconds), repeats=3)
        context.record(f"torch {name} float16 from memory, {size}", **values)


def from_files(context: Context, name: str, model: Any, kind: str) -> None:
    """A DataLoader with a worker for each core; a pass before the one that counts."""
    import torch

    size = context.few(256, 4)
    found = context.files(kind)
    count = 4096 if kind == "500x375" else 512
    count = context.few(count, 16) if not context.quick else context.few(1024, 16)
    workers = context.few(len(os.sched_getaffinity(0)), 2)
    batch_bytes = size * 3 * 224 * 224 * 4
    room = shutil.disk_usage("/dev/shm").free
    prefetch = int(max(1, min(4, room * 0.7 / (batch_bytes * workers))))
    loader = torch.utils.data.DataLoader(
        Files(list(islice(cycle(found), count))),
        batch_size=size,
        num_workers=workers,
        pin_memory=context.gpu,
        persistent_workers=True,
        prefetch_factor=prefetch,
    )

    def work() -> float:
        start = time.perf_counter()
        codes = []
        with torch.inference_mode():
            for batch in loader:
                pixels = batch.to(context.device, non_blocking=True)
                pixels = pixels.to(memory_format=torch.channels_last)
                codes.append(model(pixels.half() if context.gpu else pixels))
            assert len(torch.cat(codes).float().cpu()) == count
        return time.perf_counter() - start

    first = work()
    with GpuMeter() as meter:
        seconds = work()
    context.record(
        f"torch {name} float16 from {kind} files, {size}",
        images_per_second=count / seconds,
        count=count,
        seconds=seconds,
        first_seconds=first,
        workers=workers,
        prefetch=prefetch,
        **meter.result,
    )
