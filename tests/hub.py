"""A stand-in of the Hugging Face hub on loopback, for tests without a network.

    with Hub() as hub:
        hub.add("some/model", folder)
        environment = hub.environment(cache)   # of a child process, which must start with it

It speaks the part of the protocol that huggingface_hub and datasets ask for: the commit of a
revision, the list of a repository's files, and their content, whole or from a byte on.
"""

import hashlib
import json
import os
import re
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

CHUNK = 2**20


@dataclass
class Repository:
    """What the hub has under one id, and how it behaves."""

    folder: Path
    commit: str
    branch: str = "main"
    gated: bool = False
    delay: float = 0.0  # seconds before each megabyte of a file
    breaks: int = 0  # so many transfers of its largest file still end in the middle


def commit_of(folder: Path) -> str:
    """A commit id of 40 digits that depends on the content of a folder."""
    digest = hashlib.sha1()
    for file in files_of(folder):
        digest.update(f"{file.relative_to(folder)} {etag(file)}\n".encode())
    return digest.hexdigest()


def files_of(folder: Path) -> list[Path]:
    """All files below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def etag(file: Path) -> str:
    """The SHA-256 of a file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Hub:
    """A hub on a free port of loopback, in threads of this process, while the block runs."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.moved: dict[str, str] = {}
        self.asked: list[str] = []  # "METHOD path" of every request
        self.etags: dict[Path, str] = {}
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, name: str, folder: Path, kind: str = "models", **more: object) -> Repository:
        """Serve a folder as a repository; kind: models or datasets; more: as in `Repository`."""
        values = {"commit": commit_of(folder)} | more
        self.repositories[kind, name] = Repository(folder, **values)
        return self.repositories[kind, name]

    def environment(self, cache: Path) -> dict[str, str]:
        """The environment of a process that asks this hub and keeps what it gets in `cache`."""
        mine = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
        offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
        return {key: value for key, value in os.environ.items() if key not in offline} | mine


NAME = r"(?P<name>[^/]+/[^/]+)"
INFO = re.compile(rf"/api/(?P<kind>models|datasets)/{NAME}(/revision/(?P<revision>[^/]+))?")
TREE = re.compile(rf"/api/(?P<kind>models|datasets)/{NAME}/tree/(?P<revision>[^/]+)(?P<under>/.*)?")
PATHS = re.compile(rf"/api/(?P<kind>models|datasets)/{NAME}/paths-info/(?P<revision>[^/]+)")
FILE = re.compile(rf"/((?P<kind>datasets)/)?{NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


class Handler(BaseHTTPRequestHandler):
    """Answers one request. A refusal has the codes of the hub, by which its client knows it."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        for pattern, answer in ((INFO, self.info), (TREE, self.tree), (PATHS, self.paths)):
            if found := pattern.fullmatch(path):
                return self.within(found, answer)
        if found := FILE.fullmatch(path):
            return self.within(found, self.file)
        return self.refuse(404, "EntryNotFound", f"no {path}")

    do_HEAD = do_POST = do_GET

    def within(self, found: re.Match, answer: object) -> None:
        """Find the repository and the revision of a path, then answer."""
        parts = found.groupdict()
        name, revision = parts["name"], parts["revision"]
        if name in self.hub.moved:
            place = self.path.replace(name, self.hub.moved[name], 1)
            return self.send(307, b"", Location=place)
        repository = self.hub.repositories.get((parts["kind"] or "models", name))
        if repository is None:  # the hub does not tell a missing one from a private one
            return self.refuse(401, "RepoNotFound", "Repository not found")
        if revision not in (None, repository.branch, repository.commit):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return answer(repository, parts)

    def info(self, repository: Repository, parts: dict) -> None:
        """The commit of a revision."""
        names = [{"rfilename": entry["path"]} for entry in self.entries(repository)]
        facts = {"id": parts["name"], "sha": repository.commit, "siblings": names, "tags": []}
        self.send_json(facts | {"private": False, "downloads": 0, "likes": 0})

    def entries(self, repository: Repository) -> list[dict]:
        """Type, path, size and hash of each file of a repository."""
        rows = []
        for file in files_of(repository.folder):
            self.hub.etags.setdefault(file, etag(file))
            path = file.relative_to(repository.folder).as_posix()
            row = {"type": "file", "path": path, "size": file.stat().st_size}
            rows.append(row | {"oid": self.hub.etags[file][:40]})
        return rows

    def tree(self, repository: Repository, parts: dict) -> None:
        """The files of a repository, or of one of its folders; and the folders themselves."""
        under = (parts["under"] or "").strip("/")
        inside = f"{under}/" if under else ""
        entries = [row for row in self.entries(repository) if row["path"].startswith(inside)]
        if under and not entries:
            return self.refuse(404, "EntryNotFound", f"no {under}")
        if "recursive=true" not in self.path.lower():
            deep = {row["path"][len(inside) :].partition("/") for row in entries}
            folders = sorted({first for first, slash, _ in deep if slash})
            entries = [row for row in entries if "/" not in row["path"][len(inside) :]]
            for name in folders:
                row = {"type": "directory", "path": inside + name, "size": 0, "oid": "0" * 40}
                entries.append(row)
        return self.send_json(entries)

    def paths(self, repository: Repository, _: dict) -> None:
        """Those of the named files that there are."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if "json" in self.headers.get("Content-Type", ""):
            wanted = json.loads(body)["paths"]
        else:
            wanted = [unquote(part.partition("=")[2]) for part in body.split("&")]
        self.send_json([row for row in self.entries(repository) if row["path"] in wanted])

    def file(self, repository: Repository, parts: dict) -> None:
        """A file from the byte on that the client asks for."""
        if repository.gated:
            message = "Access to this model is restricted. Please log in."
            return self.refuse(401, "GatedRepo", message)
        file = repository.folder / parts["file"]
        if not file.is_file():
            return self.refuse(404, "EntryNotFound", "Entry not found")
        whole, first, status = file.stat().st_size, 0, 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, status = int(wanted[1]), 206
        last = min(whole, int(wanted[2]) + 1) if wanted and wanted[2] else whole
        self.hub.etags.setdefault(file, etag(file))
        headers = {"ETag": f'"{self.hub.etags[file]}"', "X-Repo-Commit": repository.commit}
        headers |= {"Accept-Ranges": "bytes", "Content-Length": str(last - first)}
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{last - 1}/{whole}"
        self.send(status, None, **headers)
        if self.command != "HEAD":
            self.copy(repository, file, first, last)
        return None

    def copy(self, repository: Repository, file: Path, first: int, last: int) -> None:
        """Send some bytes of a file, slowly or only the first half if the repository does so."""
        largest = max(files_of(repository.folder), key=lambda path: path.stat().st_size)
        if breaks := repository.breaks > 0 and file == largest:
            repository.breaks -= 1
            last = first + (last - first) // 2
        with open(file, "rb") as stream:
            stream.seek(first)
            while first < last:
                time.sleep(repository.delay)
                part = stream.read(min(CHUNK, last - first))
                self.wfile.write(part)
                first += len(part)
        if breaks:
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.send(status, json.dumps({"error": message}).encode(), **headers)

    def send(self, status: int, body: bytes | None, **headers: str) -> None:
        """Send a status, headers and a body; None: the caller sends it."""
        self.send_response(status)
        if body is not None:
            headers["Content-Length"] = str(len(body))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""
