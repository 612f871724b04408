"""A Hugging Face hub on this machine: what huggingface_hub says over HTTP to push a model and to load it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_test"


class FakeHub:
    """One repository, in memory.

    Attributes:
        files: what the last commit holds, by path.
        commits: summaries of the commits.
        made: what the repository was asked to be made as.
    """

    def __init__(self) -> None:
        self.repository = ""
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.made: dict[str, Any] = {}
        self.address = ""

    def post(self, path: str, body: bytes) -> Any:
        """The answer to a POST; None where there is nothing."""
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            self.made = json.loads(body)
            self.repository = f"{self.made.get('organization')}/{self.made['name']}"
            return {"url": f"{self.address}/{self.repository}"}
        if path.startswith(f"/api/models/{self.repository}/preupload/"):
            files = json.loads(body)["files"]
            mode = {True: "lfs", False: "regular"}
            return {
                "files": [
                    {"path": f["path"], "uploadMode": mode[f["path"].endswith(".rdo")], "shouldIgnore": False}
                    for f in files
                ]
            }
        if path.endswith(".git/info/lfs/objects/batch"):
            actions = lambda oid: {"upload": {"href": f"{self.address}/objects/{oid}"}}  # noqa: E731
            objects = [{**o, "actions": actions(o["oid"])} for o in json.loads(body)["objects"]]
            return {"transfer": "basic", "objects": objects}
        if path.startswith(f"/api/models/{self.repository}/commit/"):
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "header":
                    self.commits.append(value["summary"])
                elif item["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    self.files[value["path"]] = self.objects[value["oid"]]
            return {"commitUrl": f"{self.address}/{self.repository}/commit/{COMMIT}", "commitOid": COMMIT}
        return None


@contextmanager
def running() -> Iterator[FakeHub]:
    """Serve until the block ends; ``address`` is what HF_ENDPOINT must be."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _answer(self, code: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self) -> None:
            body = self._body()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._answer(401, b'{"error": "Invalid credentials"}')
                return
            answer = hub.post(self.path.partition("?")[0], body)
            self._answer(200 if answer is not None else 404, json.dumps(answer).encode())

        def do_PUT(self) -> None:
            body = self._body()
            hub.objects[hashlib.sha256(body).hexdigest()] = body
            self._answer(200)

        def do_GET(self) -> None:
            name = self.path.partition("?")[0].removeprefix(f"/{hub.repository}/resolve/").partition("/")[2]
            if name not in hub.files:
                self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                return
            body = hub.files[name]
            self._answer(200, body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', X_Repo_Commit=COMMIT)

        def do_HEAD(self) -> None:
            self.do_GET()

    return Handler
