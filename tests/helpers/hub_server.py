"""
A Hub on the loopback interface for the real client. Repositories, commits, LFS and downloads are in memory.

It makes the known checks of the real Hub:

- Every write has a bearer token.
- Uploads to LFS have the right sha256.
- A commit refers only to uploaded LFS objects.
- Binary files are not regular files.
- The metadata of a README is YAML, and its `model-index` has the right form.

All commits are served by their hash.

It does not support Xet (set `HF_HUB_DISABLE_XET=1` for the client), multipart uploads, rate limits, or other checks of
metadata by huggingface.co.

    with LoopbackHub() as hub:
        subprocess.run([...], env={**os.environ, **hub.environment(tmp_path)})
    assert len(hub.repositories["model", "me/student"].commits) == 1
"""

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_loopback_token_of_nobody"
_PLURALS = {"models": "model", "datasets": "dataset", "spaces": "space"}
# Files that are always in LFS, by the default .gitattributes of huggingface.co.
_LFS = (".safetensors", ".parquet", ".bin", ".model")


@dataclass(frozen=True)
class Commit:
    """An immutable state of a repository, with content by path."""

    sha: str
    message: str
    files: dict[str, bytes]
    in_lfs: frozenset[str]


@dataclass
class Repository:
    private: bool
    commits: list[Commit] = field(default_factory=list)  # pushed commits; a new repository has none

    @property
    def head(self) -> Commit:
        return self.commits[-1] if self.commits else Commit("0" * 40, "", {}, frozenset())

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.head
        return next((commit for commit in (*self.commits, Repository(False).head) if commit.sha == revision), None)


class Refused(Exception):
    """A response with another status than 200."""

    def __init__(self, status: int, message: str, code: str | None = None, **body):
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **body}


class LoopbackHub:
    """
    The server with its repositories and the requests that it received.

    Attributes:
        repositories (`dict[tuple[str, str], Repository]`): Repositories by type and id.
        requests (`list[tuple[str, str]]`): Methods and paths of requests, in order.
        faults (`list[Callable]`): Functions that are called with method, path and handler before each request. A
            function can raise [`Refused`], or return True to close the connection.
    """

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list = []
        self.lock = threading.RLock()

    def __enter__(self):
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.close()

    def close(self) -> None:
        """Stops the server. Connections are refused afterwards."""
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        """Restores the state at the start, with the same address."""
        for part in (self.repositories, self.objects, self.requests, self.faults):
            part.clear()

    def environment(self, home: Path) -> dict[str, str]:
        """Returns environment variables for a process that uses this Hub, with a cache below `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def add(self, repo_id: str, directory: Path, repo_type: str = "model") -> str:
        """Adds a repository with the files of a directory. Returns its commit."""
        files = {file.relative_to(directory).as_posix(): file.read_bytes() for file in directory.rglob("*.*")}
        repository = self.repositories[repo_type, repo_id] = Repository(False)
        self.commit(repository, files, frozenset(name for name in files if name.endswith(_LFS)), "Initial")
        return repository.head.sha

    def commit(self, repository: Repository, files: dict[str, bytes], in_lfs: frozenset[str], message: str) -> Commit:
        digest = hashlib.sha1(repository.head.sha.encode() + message.encode())
        for name, content in sorted(files.items()):
            digest.update(name.encode() + hashlib.sha256(content).digest())
        repository.commits.append(Commit(digest.hexdigest(), message, dict(files), in_lfs & files.keys()))
        return repository.head


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: LoopbackHub

    def log_message(self, *args):
        """Writes nothing to stderr."""

    def do_GET(self):
        self._serve()

    do_POST = do_PUT = do_HEAD = do_GET

    def _serve(self) -> None:
        hub = self.server_hub
        parts = urlsplit(self.path)
        self.route, self.query = unquote(parts.path), parse_qs(parts.query)
        hub.requests.append((self.command, self.route))
        try:
            for fault in list(hub.faults):
                if fault(self.command, self.route, self):
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
            length = int(self.headers.get("Content-Length") or 0)
            self.body = self.rfile.read(length)
            with hub.lock:
                self._answer()
        except Refused as refused:
            headers = {"X-Error-Message": str(refused)} | ({"X-Error-Code": refused.code} if refused.code else {})
            # The unread part of the request must not be parsed as the next request.
            self.close_connection = True
            self._send(refused.status, json.dumps(refused.body).encode(), headers | {"Connection": "close"})

    def _send(self, status: int, content: bytes = b"", headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self) -> None:
        routes = {
            "GET": [
                (r"/api/whoami-v2", self._whoami),
                (r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?", self._info),
                (r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", self._tree),
                (r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
            ],
            "POST": [
                (r"/api/repos/create", self._create),
                (r"/api/validate-yaml", self._validate),
                (r"/api/(models|datasets)/([^/]+/[^/]+)/preupload/([^/]+)", self._preupload),
                (r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._lfs_batch),
                (r"/lfs/verify", self._lfs_verify),
                (r"/api/(models|datasets)/([^/]+/[^/]+)/commit/([^/]+)", self._commit),
            ],
            "PUT": [(r"/lfs/([0-9a-f]{64})", self._lfs_put)],
        }
        for pattern, answer in routes["GET" if self.command == "HEAD" else self.command]:
            found = re.fullmatch(pattern, self.route)
            if found:
                answer(*found.groups())
                return
        raise Refused(404, f"no such route: {self.command} {self.route}", "RepoNotFound")

    def _check_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Invalid username or password.")

    def _repository(self, kind: str, repo_id: str) -> Repository:
        repository = self.server_hub.repositories.get((kind, repo_id))
        if repository is None or (repository.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            raise Refused(404 if self.headers.get("Authorization") else 401, "Repository not found", "RepoNotFound")
        return repository

    def _state(self, kind: str, repo_id: str, revision: str) -> Commit:
        commit = self._repository(kind, repo_id).at(revision)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # ---- Reading ----

    def _whoami(self) -> None:
        self._check_token()
        self._json({"type": "user", "name": "somebody", "orgs": [{"name": "me"}]})

    def _info(self, plural: str, repo_id: str, revision: str | None) -> None:
        kind = _PLURALS[plural]
        repository, commit = self._repository(kind, repo_id), self._state(kind, repo_id, revision or "main")
        siblings = [{"rfilename": name} for name in sorted(commit.files)]
        self._json({"id": repo_id, "sha": commit.sha, "private": repository.private, "siblings": siblings, "tags": []})

    def _entries(self, commit: Commit, names: list[str]) -> list[dict]:
        entries = []
        for name in names:
            content = commit.files[name]
            entry = {"type": "file", "path": name, "size": len(content), "oid": _git_oid(content)}
            if name in commit.in_lfs:
                sha = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha, "sha256": sha, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        return entries

    def _tree(self, plural: str, repo_id: str, revision: str, below: str | None) -> None:
        commit = self._state(_PLURALS[plural], repo_id, revision)
        names = [name for name in sorted(commit.files) if below is None or name.startswith(f"{below}/")]
        if below is not None and not names:
            raise Refused(404, f"{below} does not exist", "EntryNotFound")
        self._json(self._entries(commit, names))

    def _resolve(self, prefix: str | None, repo_id: str, revision: str, name: str) -> None:
        commit = self._state("dataset" if prefix else "model", repo_id, revision)
        if name not in commit.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.sha})
            return
        content = commit.files[name]
        sha = hashlib.sha256(content).hexdigest() if name in commit.in_lfs else _git_oid(content)
        self._send(200, content, {"X-Repo-Commit": commit.sha, "ETag": f'"{sha}"'})

    # ---- Writing ----

    def _create(self) -> None:
        self._check_token()
        request = json.loads(self.body)
        kind, owner = request.get("type") or "model", request.get("organization") or "somebody"
        if owner not in ("somebody", "me"):
            raise Refused(403, f"You don't have the rights to create a repo under {owner}")
        repo_id = f"{owner}/{request['name']}"
        url = f"{self.server_hub.url}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        if (kind, repo_id) in self.server_hub.repositories:
            raise Refused(409, "You already created this repo", url=url)
        private = request.get("visibility") == "private" or bool(request.get("private"))
        self.server_hub.repositories[kind, repo_id] = Repository(private)
        self._json({"url": url, "id": repo_id})

    def _validate(self) -> None:
        errors = []
        block = re.match(r"---\n(.*?)\n---(\n|$)", json.loads(self.body)["content"], flags=re.S)
        try:
            data = yaml.safe_load(block[1]) if block else {}
            for entry in data.get("model-index", []):
                for result in entry["results"]:
                    assert entry["name"] and result["task"]["type"] and result["dataset"]["type"]
                    assert result["dataset"]["name"]
                    for metric in result["metrics"]:
                        assert metric["type"] and isinstance(metric["value"], int | float)
            for name in ("base_model", "datasets"):
                values = data.get(name, [])
                for value in [values] if isinstance(values, str) else values:
                    assert re.fullmatch(r"([\w.-]+/)?[\w.-]+", value), f"{name}: {value} is no id"
        except (yaml.YAMLError, AssertionError, KeyError, TypeError, AttributeError) as error:
            errors.append({"message": f"{type(error).__name__}: {error}"})
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _preupload(self, plural: str, repo_id: str, revision: str) -> None:
        self._check_token()
        head = self._state(_PLURALS[plural], repo_id, revision)
        answers = []
        for file in json.loads(self.body)["files"]:
            sample, name = base64.b64decode(file["sample"]), file["path"]
            mode = "lfs" if name.endswith(_LFS) or b"\0" in sample or file["size"] > 10_000_000 else "regular"
            there = head.files.get(name)
            oid = None
            if there is not None:
                oid = hashlib.sha256(there).hexdigest() if name in head.in_lfs else _git_oid(there)
            answers.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def _lfs_batch(self, prefix: str | None, repo_id: str) -> None:
        self._check_token()
        self._repository("dataset" if prefix else "model", repo_id)
        objects = []
        for requested in json.loads(self.body)["objects"]:
            oid = requested["oid"]
            answer = {"oid": oid, "size": requested["size"]}
            if oid not in self.server_hub.objects:
                answer["actions"] = {
                    "upload": {"href": f"{self.server_hub.url}/lfs/{oid}", "header": {}},
                    "verify": {"href": f"{self.server_hub.url}/lfs/verify", "header": {}},
                }
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "the content does not have this sha256")
        self.server_hub.objects[oid] = self.body
        self._send(200)

    def _lfs_verify(self) -> None:
        self._check_token()
        pointer = json.loads(self.body)
        if len(self.server_hub.objects.get(pointer["oid"], b"")) != pointer["size"]:
            raise Refused(404, "no such object")
        self._json({})

    def _commit(self, plural: str, repo_id: str, revision: str) -> None:
        self._check_token()
        repository = self._repository(_PLURALS[plural], repo_id)
        files, in_lfs, message = dict(repository.head.files), set(repository.head.in_lfs), ""
        for line in self.body.decode().splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                message = value["summary"]
            elif operation["key"] == "file":
                content = base64.b64decode(value["content"])
                if b"\0" in content[:8000]:
                    raise Refused(400, f"Your push was rejected because it contains binary files: {value['path']}")
                files[value["path"]] = content
                in_lfs.discard(value["path"])
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.server_hub.objects:
                    raise Refused(400, f"{value['path']}: the LFS object {value['oid']} was never uploaded")
                files[value["path"]] = self.server_hub.objects[value["oid"]]
                in_lfs.add(value["path"])
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, f"unknown operation {operation['key']}")
        commit = self.server_hub.commit(repository, files, frozenset(in_lfs), message)
        url = f"{self.server_hub.url}/{'datasets/' if plural == 'datasets' else ''}{repo_id}/commit/{commit.sha}"
        self._json({"commitUrl": url, "commitOid": commit.sha})
