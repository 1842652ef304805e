"""A hub on this machine: what huggingface_hub asks of one, over plain HTTP, for tests. It keeps commits in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_token_of_the_tests"


class Repository:
    """Commits (by id: files by name), and the branches and tags that name them."""

    def __init__(self, *, private: bool = False, gated: bool = False, library: str | None = None) -> None:
        self.private, self.gated, self.library = private, gated, library
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.commit("main", {})

    def commit(self, branch: str, changed: dict[str, bytes]) -> str:
        """Files of a branch with some changed, as a new commit."""
        files = {**self.commits.get(self.branches.get(branch, ""), {}), **changed}
        said = repr((len(self.commits), sorted((name, hashlib.sha1(of).hexdigest()) for name, of in files.items())))
        name = hashlib.sha1(said.encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        return name

    def resolve(self, revision: str) -> str | None:
        """The commit that a revision means."""
        found = self.branches.get(revision, self.tags.get(revision, revision))
        return found if found in self.commits else None


class Hub(ThreadingHTTPServer):
    """The server; `asked` holds the method and path of every request, `status` answers all of them where it is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str]] = []
        self.status: int | None = None
        self.cut: str | None = None  # the file whose transfer breaks off

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.0"  # a connection a request, so that a server that was closed does not answer

    def log_message(self, *_):
        """Nothing is printed."""

    def do_HEAD(self):
        self._get()

    def do_GET(self):
        self._get()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self._path()
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self._token() != TOKEN:
            return self._fail(401, "", "Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            said = json.loads(body)
            name = f"{said['organization']}/{said['name']}"
            if said["organization"] != "owner":
                return self._fail(
                    403, "", f"You don't have the rights to create a model under {said['organization']!r}"
                )
            if name in self.server.repositories:
                return self._fail(409, "", "You already created this model repo", {"url": f"{self.server.url}/{name}"})
            private = said.get("visibility") == "private" or bool(said.get("private"))
            self.server.repositories[name] = Repository(private=private)
            return self._json({"url": f"{self.server.url}/{name}"})
        parts = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path)
        repository = self.server.repositories.get(parts[1]) if parts else None
        if parts is None or repository is None:
            return self._fail(404, "RepoNotFound", "Repository not found")
        what, branch = parts[2], unquote(parts[3])
        if what == "branch":
            repository.branches.setdefault(branch, repository.branches["main"])
            return self._json({})
        if branch not in repository.branches:
            return self._fail(404, "RevisionNotFound", "Invalid rev id")
        if what == "preupload":
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        lines = [json.loads(line) for line in body.splitlines()]
        changed = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        made = repository.commit(branch, changed)
        return self._json({"commitUrl": f"{self.server.url}/{parts[1]}/commit/{made}", "commitOid": made})

    def _get(self):
        path = self._path()
        if self.server.status is not None:
            return self._fail(self.server.status, "", "Out of order")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(found[1], unquote(found[2]), unquote(found[3]))
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision/([^/]+)|refs)", path)
        repository = self._seen(found[1]) if found else None
        if found is None or repository is None:
            return None if found else self._fail(404, "RepoNotFound", "Repository not found")
        if found[2] == "refs":
            both = {"branches": repository.branches, "tags": repository.tags}
            listed = {
                kind: [{"name": k, "ref": f"refs/heads/{k}", "targetCommit": v} for k, v in of.items()]
                for kind, of in both.items()
            }
            return self._json(listed | {"converts": []})
        commit = repository.resolve(unquote(found[3]))
        if commit is None:
            return self._fail(404, "RevisionNotFound", "Invalid rev id")
        files = [{"rfilename": name} for name in sorted(repository.commits[commit])]
        return self._json(
            {"id": found[1], "sha": commit, "siblings": files, "tags": [], "private": repository.private}
            | ({"library_name": repository.library} if repository.library else {})
        )

    def _file(self, name: str, revision: str, file: str):
        repository = self._seen(name)
        if repository is None:
            return None
        if repository.gated and self._token() != TOKEN:
            return self._fail(403, "GatedRepo", f"Access to model {name} is restricted")
        commit = repository.resolve(revision)
        if commit is None:
            return self._fail(404, "RevisionNotFound", "Invalid rev id")
        content = repository.commits[commit].get(file)
        if content is None:
            return self._fail(404, "EntryNotFound", "Entry not found", headers={"X-Repo-Commit": commit})
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start is not None:
            first, n = int(start[1]), len(content)
            return self._answer(206, content[first:], headers | {"Content-Range": f"bytes {first}-{n - 1}/{n}"})
        return self._answer(200, content, headers)

    def _seen(self, name: str) -> Repository | None:
        """The repository; where there is none that this account may see, that has been answered."""
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and self._token() != TOKEN):
            self._fail(401, "RepoNotFound", "Repository not found")
            return None
        return repository

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _path(self) -> str:
        path = urlsplit(self.path).path
        self.server.asked.append((self.command, path))
        return path

    def _json(self, content):
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _fail(self, status, code, message, content=None, headers=None):
        said = {"X-Error-Code": code} if code else {}
        body = json.dumps({"error": message} | (content or {})).encode()
        self._answer(
            status, body, {"Content-Type": "application/json", "X-Error-Message": message} | said | (headers or {})
        )

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            cut = self.server.cut is not None and self.path.endswith(self.server.cut)
            self.wfile.write(content[: len(content) // 2] if cut else content)
