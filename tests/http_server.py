"""An HTTP server of images, with faults."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.scale.conftest import png


class Server(ThreadingHTTPServer):
    """Serves images, with faults; `asked` counts the paths that were asked for."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that went away."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        is_ipv6 = ":" in host
        self.address_family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
        super().__init__((host, 0), Handler)
        self.asked = Counter[str]()
        # Content by path, for which parts can be asked.
        self.files = dict[str, bytes]()
        self.headers = list[dict[str, str]]()
        host = f"[{host}]" if is_ipv6 else host
        self.address = f"http://{host}:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def send_part(self, content: bytes) -> None:
        """Send the bytes that were asked for."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, stop = (int(found[1]), int(found[2]) + 1) if found else (0, len(content))
        part = content[start:stop]
        self.send_response(206 if found else 200)
        self.send_header("Content-Length", str(len(part)))
        if found:
            span = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
            self.send_header("Content-Range", span)
        self.end_headers()
        self.wfile.write(part)

    def do_GET(self) -> None:
        name = self.path.strip("/")
        self.server.asked[name] += 1
        kind, _, number = name.partition("-")
        first = self.server.asked[name] == 1
        self.server.headers.append(dict(self.headers))
        file = name.partition("?")[0]
        if file in self.server.files:
            self.send_part(self.server.files[file])
            return
        if kind == "redirect":
            target = {
                "broken": "http://[::1",
                "file": "file:///etc/passwd",
                "other": f"http://localhost:{self.server.server_port}/secret",
                "metadata": "http://169.254.169.254/latest",
                "signed": f"http://bob:s3cret@localhost:{self.server.server_port}/x?sig=1",
                "inside": f"http://localhost:{self.server.server_port}/x?sig=1",
                "secret": "http://bob:s3cret\u2100@[::1/x?sig=1",
                "store": "s3://bucket/secret.png",
                "loop": "/redirect-loop",
                "good": "/image-3",
            }[number]
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
        elif kind == "gone" or (kind == "busy" and first):
            self.send_error(404 if kind == "gone" else 503)
        elif kind == "late" and first:
            for byte in b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 20:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        else:
            content = png(int(number)) if number.isdecimal() else b"secret"
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if kind == "stall" and first:
                time.sleep(0.6)
            for byte in content if kind == "drip" and first else b"":
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
            cut = kind == "cut" and first
            self.wfile.write(content[: len(content) // 2] if cut else content)


@contextmanager
def running(host: str = "127.0.0.1") -> Iterator[Server]:
    """A server that answers while the block lasts."""
    with Server(host) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.05,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()
