"""Holds the memory of a GPU until its input ends: python -m tests.gpu.hog LEAVE_MB."""

from __future__ import annotations

import ctypes
import sys

from sk_cnncodes.engines.devices import cuda_driver


def main(leave_mb: int) -> None:
    """Allocate all but so much, say how much that is, and wait."""
    driver = cuda_driver()
    if driver is None:
        raise SystemExit("no GPU")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _check(driver.cuDeviceGet(ctypes.byref(device), 0))
    _check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
    _check(driver.cuCtxSetCurrent(context))
    free, total, taken = ctypes.c_size_t(), ctypes.c_size_t(), 0
    # In steps: memory may be in pieces, and others come and go.
    for step_mb in (4096, 256, 32):
        while True:
            driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
            if free.value < (leave_mb + step_mb) << 20:
                break
            pointer = ctypes.c_uint64()
            size = ctypes.c_size_t(step_mb << 20)
            if driver.cuMemAlloc_v2(ctypes.byref(pointer), size) != 0:
                break
            taken += step_mb
    print(f"{taken} MB taken, {free.value >> 20} MB left", flush=True)
    sys.stdin.read()


def _check(code: int) -> None:
    if code != 0:
        raise SystemExit(f"the driver answers {code}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
