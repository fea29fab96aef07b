"""Resize images on a GPU by two matrices, as Pillow does; ONNX Runtime runs it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from sk_cnncodes.base.threads import ResourcePool
from sk_cnncodes.engines.devices import CPU, Device
from sk_cnncodes.engines.onnxruntime import import_onnxruntime, load_session

if TYPE_CHECKING:
    import onnxruntime as ort

# Resizes at the same time; each takes about 15 bytes of GPU memory per pixel.
_N_CONCURRENT = 2
# Matrices kept on the GPU: images of a camera have the same.
_KEPT_MATRICES = 16


class MatrixResizer:
    """Resizes images by matrices, rows first, in whole levels; thread-safe.

    The result equals Pillow's from the same pixels within two levels, mostly exactly.

    Parameters
    ----------
    gpu : int or None
        Index of the GPU; None for the CPU.

    Raises
    ------
    DeviceError
        If ONNX Runtime cannot use the GPU.
    """

    def __init__(self, gpu: int | None) -> None:
        self._gpu = gpu
        self._device = CPU if gpu is None else Device(gpu)
        self._sessions = {
            turned: load_session(_graph(turned), self._device, 1)
            for turned in (False, True)
        }
        self._places = ResourcePool(range(_N_CONCURRENT))
        self._matrices: OrderedDict[int, tuple[np.ndarray, ort.OrtValue]] = (
            OrderedDict()
        )
        self._lock = threading.Lock()

    def resize(
        self,
        image: Any,
        rows: tuple[np.ndarray, int],
        columns: tuple[np.ndarray, int],
        *,
        turned: bool = False,
    ) -> np.ndarray:
        """Resize an image, and compute a part of the result.

        Parameters
        ----------
        image : object
            RGB pixels of 8 bits, (height, width, 3), on the GPU
            (`__cuda_array_interface__`) or an array.
        rows, columns : (ndarray of float32, int)
            Matrix of shape (n_resized, n_pixels) along the height and the width of the
            result, read-only, and the first pixel that it is multiplied with.
        turned : bool, default=False
            Whether the image is transposed first.

        Returns
        -------
        ndarray of uint8, shape (n_rows, n_columns, 3)
        """
        return self._places.use(lambda _: self._resize(image, rows, columns, turned))

    def _resize(
        self,
        image: Any,
        rows: tuple[np.ndarray, int],
        columns: tuple[np.ndarray, int],
        turned: bool,
    ) -> np.ndarray:
        session = self._sessions[turned]
        binding = session.io_binding()
        self._bind_image(binding, image)
        start = np.array([rows[1], columns[1]], np.int64)
        size = np.array([rows[0].shape[1], columns[0].shape[1]], np.int64)
        if turned:
            start, size = start[::-1].copy(), size[::-1].copy()
        binding.bind_cpu_input("start", start)
        binding.bind_cpu_input("end", start + size)
        for name, (matrix, _) in (("rows", rows), ("columns", columns)):
            binding.bind_ortvalue_input(name, self._on_device(matrix))
        binding.bind_output("part")
        session.run_with_iobinding(binding)
        (part,) = binding.copy_outputs_to_cpu()
        resized: np.ndarray = part
        return resized

    def _bind_image(self, binding: Any, image: Any) -> None:
        if isinstance(image, np.ndarray):
            binding.bind_cpu_input("image", np.ascontiguousarray(image))
            return
        pixels = image.__cuda_array_interface__
        shape = tuple(pixels["shape"])
        steps = pixels.get("strides")
        packed = steps is None or tuple(steps) == (3 * shape[1], 3, 1)
        if pixels["typestr"] != "|u1" or len(shape) != 3 or shape[2] != 3 or not packed:
            raise ValueError(f"unexpected pixels on the GPU: {pixels}")
        address, _ = pixels["data"]
        binding.bind_input("image", "cuda", self._gpu, np.uint8, shape, address)

    def _on_device(self, matrix: np.ndarray) -> ort.OrtValue:
        """A matrix on the device; the same object is copied there once."""
        with self._lock:
            kept = self._matrices.pop(id(matrix), None)
            if kept is None or kept[0] is not matrix:
                make = import_onnxruntime().OrtValue.ortvalue_from_numpy
                where = ("cpu", 0) if self._gpu is None else ("cuda", self._gpu)
                kept = (matrix, make(matrix, *where))
            self._matrices[id(matrix)] = kept
            while len(self._matrices) > _KEPT_MATRICES:
                self._matrices.popitem(last=False)
            return kept[1]


def _graph(turned: bool) -> bytes:
    """The graph: columns, then rows; each product in whole levels from 0 to 255."""
    from onnx import TensorProto, helper

    def levels(name: str, product: str) -> list[Any]:
        return [
            helper.make_node("Add", [product, "half"], [f"{name}_raised"]),
            helper.make_node("Floor", [f"{name}_raised"], [f"{name}_whole"]),
            helper.make_node("Clip", [f"{name}_whole", "black", "white"], [name]),
        ]

    planes = (2, 1, 0) if turned else (2, 0, 1)
    nodes = [
        helper.make_node("Slice", ["image", "start", "end", "axes"], ["used"]),
        # Whole planes make one large product of many small ones.
        helper.make_node("Transpose", ["used"], ["planes"], perm=planes),
        helper.make_node("Cast", ["planes"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["columns"], ["across"], perm=(1, 0)),
        helper.make_node("MatMul", ["pixels", "across"], ["wide_product"]),
        *levels("wide", "wide_product"),
        helper.make_node("MatMul", ["rows", "wide"], ["high_product"]),
        *levels("high", "high_product"),
        helper.make_node("Cast", ["high"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["bytes"], ["part"], perm=(1, 2, 0)),
    ]

    def value(name: str, kind: int, shape: list[str | int]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    def constant(name: str, number: float) -> Any:
        return helper.make_tensor(name, TensorProto.FLOAT, [], [number])

    graph = helper.make_graph(
        nodes,
        "resize",
        [
            value("image", TensorProto.UINT8, ["height", "width", 3]),
            value("rows", TensorProto.FLOAT, ["n_rows", "used_height"]),
            value("columns", TensorProto.FLOAT, ["n_columns", "used_width"]),
            value("start", TensorProto.INT64, [2]),
            value("end", TensorProto.INT64, [2]),
        ],
        [value("part", TensorProto.UINT8, ["n_rows", "n_columns", 3])],
        [
            helper.make_tensor("axes", TensorProto.INT64, [2], [0, 1]),
            constant("half", 0.5),
            constant("black", 0.0),
            constant("white", 255.0),
        ],
    )
    opset = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    return bytes(model.SerializeToString())
