"""A server of S3 on this machine, with faults; moto's."""

from __future__ import annotations

import itertools
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.scale.conftest import png

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")
serving = pytest.importorskip("werkzeug.serving")
BUCKET = "s3://pictures/"


class Faults:
    """Answers 503 to every tenth request of an object, and stalls once, if `on`."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._is_on = False
        self.lists = 0

    @contextmanager
    def on(self) -> Iterator[None]:
        """Be faulty."""
        self._number = itertools.count(1)
        self.n_busy = self.n_stalled = 0
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False

    def __call__(self, environ: Any, start: Callable[..., Any]) -> Any:
        path, query = environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        self.lists += "list-type=2" in query
        if self._is_on and environ["REQUEST_METHOD"] == "GET" and path.endswith(".png"):
            number = next(self._number)
            if number == 25:
                self.n_stalled += 1
                time.sleep(3)
            if number % 10 == 0:
                self.n_busy += 1
                start("503 Slow Down", [("Content-Type", "application/xml")])
                return [b"<Error><Code>SlowDown</Code><Message>x</Message></Error>"]
        return self._application(environ, start)


@contextmanager
def server() -> Iterator[Faults]:
    """A server of S3 with a bucket, in the environment of this process.

    It starts empty, after others too: fsspec keeps the stores that it opened, with the
    addresses that they had then, and moto keeps the buckets of the whole process.
    """
    kept = fsspec.get_filesystem_class("s3")
    kept.clear_instance_cache()
    application = Faults(
        moto_server.DomainDispatcherApplication(moto_server.create_backend_app)
    )
    quiet = type("Quiet", (serving.WSGIRequestHandler,), {"log": lambda *_: None})
    found = serving.make_server(
        "127.0.0.1", 0, application, threaded=True, request_handler=quiet
    )
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{found.server_port}"
    urllib.request.urlopen(f"{address}/moto-api/reset", data=b"").close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("SK_CNNCODES_REMOTE", BUCKET)
        # Pages of few keys.
        patch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "20")
        system().mkdir("pictures")
        yield application
    kept.clear_instance_cache()
    found.shutdown()
    thread.join()


def system() -> Any:
    return fsspec.core.url_to_fs(BUCKET, use_listings_cache=False)[0]


def put(name: str, content: bytes) -> None:
    system().pipe_file(f"pictures/{name}", content)


def put_images(folder: str, count: int, corrupt: bool = False) -> list[str]:
    """Images, the last digit of whose names is that of their folder."""
    keys = [f"{number % 3}/{number:05}.png" for number in range(count)]
    for number, key in enumerate(keys):
        bad = corrupt and number % 100 == 50
        put(f"{folder}/{key}", b"no image" if bad else png(number % 500))
    return sorted(keys)
