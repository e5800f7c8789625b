"""As much of the hub's HTTP as its client needs, and a line that breaks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

REPOSITORY = "someone/small-model"
_COMMIT = "0" * 39 + "1"
_LONGEST = 60
"""Seconds that a stalled transfer waits to be killed."""

Line = Literal["whole", "cut", "stalled"]


@dataclass
class Hub:
    """A repository on a server of this machine.

    Attributes:
        folder: The files of the repository.
        address: Of the server, without a slash at its end.
        line: What becomes of weights on their way: they arrive, the connection ends
            half-way however often the client resumes, or nothing comes after the half.
        half_sent: Set when half of the weights are out.
    """

    folder: Path
    address: str = ""
    line: Line = "whole"
    half_sent: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """The files of `folder` as `REPOSITORY`, until the block ends."""
    hub = Hub(folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub)) as server:
        server.daemon_threads = True
        server.block_on_close = False
        hub.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    """Answers HEAD and GET of files, and the list of files."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments: object) -> None:
        self.hub = hub
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, has_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{REPOSITORY}"):
            self._send(200, json.dumps(self._about()).encode(), {}, has_body)
            return
        name = re.fullmatch(rf"/{REPOSITORY}/resolve/[^/]+/([\w.-]+)", path)
        file = self.hub.folder / name[1] if name else None
        if file is None or not file.is_file():
            missing = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _COMMIT}
            self._send(404, b"", missing, has_body)
            return
        self._send_file(file, has_body)

    def _about(self) -> dict[str, object]:
        names = sorted(f.name for f in self.hub.folder.iterdir())
        files = [{"rfilename": name} for name in names]
        return {"id": REPOSITORY, "sha": _COMMIT, "siblings": files}

    def _send_file(self, file: Path, has_body: bool) -> None:
        content = file.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": _COMMIT,
            "Accept-Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        if asked:
            headers["Content-Range"] = (
                f"bytes {start}-{len(content) - 1}/{len(content)}"
            )
        stop = len(content)
        if has_body and self.hub.line != "whole" and file.suffix == ".safetensors":
            stop //= 2
        status = 206 if asked else 200
        self._send(status, content[start:], headers, has_body, stop - start)

    def _send(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str],
        has_body: bool,
        most: int | None = None,
    ) -> None:
        """Sends an answer, of its content only the first `most` bytes."""
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if not has_body:
            return
        most = len(content) if most is None else max(most, 0)
        self.wfile.write(content[:most])
        self.wfile.flush()
        if most < len(content):
            self.close_connection = True
            self.hub.half_sent.set()
            if self.hub.line == "stalled":
                self.connection.settimeout(_LONGEST)
                with contextlib.suppress(OSError):
                    self.connection.recv(1)  # until the client is gone
