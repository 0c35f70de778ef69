"""A Hugging Face hub of this process: repositories in memory, behind as much of its HTTP interface as huggingface_hub
needs to make, to fill and to read those of models. It refuses as the real one does."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

OWNER, TOKEN = "me", "hf_of_me"
LICENCES = ("apache-2.0", "cc-by-4.0", "mit", "other")


def blob(content: bytes) -> str:
    """git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Commit:
    files: dict[str, bytes]
    message: str
    client: str
    parent: str | None = None


@dataclass
class Repository:
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, commit: Commit) -> str:
        """The commit's id."""
        made = hashlib.sha1(repr((len(self.commits), commit)).encode()).hexdigest()
        self.commits[made], self.branches[branch] = commit, made
        return made

    def files(self, branch: str) -> dict[str, bytes]:
        return self.commits[self.branches[branch]].files


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **body):
        self.status, self.body = status, {"error": message} | body
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class Handler(BaseHTTPRequestHandler):
    """One request on a connection of its own, so that none is left when the server is gone."""

    server: "Server"

    def do_POST(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            status, (headers, content) = 200, self.answer(body)
        except Refused as refused:
            status, headers, content = refused.status, refused.headers, refused.body
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"X-Request-Id": "Root=1-2-3", "Content-Length": len(data), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, body: bytes) -> tuple[dict[str, str], Any]:
        """Headers and content."""
        token = self.headers.get("Authorization")
        if token not in (None, f"Bearer {TOKEN}"):
            raise Refused(401, "Invalid credentials in Authorization header")
        writes = self.command == "POST"
        if writes and token is None:
            raise Refused(401, "Invalid username or password.")
        match self.command, *map(unquote, urlsplit(self.path).path.split("/")[1:]):
            case "POST", "api", "repos", "create":
                return {}, self.create(**json.loads(body))
            case "POST", "api", "validate-yaml":
                return {}, self.validate(json.loads(body)["content"])
            case _, "api", "models", owner, name, *rest:
                return {}, self.about(f"{owner}/{name}", self.repository(owner, name, token, writes), rest, body)
            case _, owner, name, "resolve", revision, file:
                commit, files = self.found(self.repository(owner, name, token), revision)
                if file not in files:
                    raise Refused(404, "Entry not found", "EntryNotFound")
                return {"ETag": f'"{blob(files[file])}"', "X-Repo-Commit": commit}, files[file]
        raise Refused(404, "Not found")

    def about(self, repo_id: str, repository: Repository, rest: list[str], body: bytes) -> Any:
        match self.command, *rest:
            case "POST", "branch", branch:
                if branch in repository.branches:
                    raise Refused(409, f"Reference already exists: refs/heads/{branch}")
                repository.branches[branch] = repository.branches["main"]
                return None
            case "POST", "preupload", branch:
                files, names = self.found(repository, branch)[1], [file["path"] for file in json.loads(body)["files"]]
                about = dict(uploadMode="regular", shouldIgnore=False)
                here = {name: blob(content) for name, content in files.items()}
                return {"files": [about | {"path": name, "oid": here.get(name)} for name in names]}
            case "POST", "commit", branch:
                parent, files = self.found(repository, branch)
                (_, header), *lines = [json.loads(line).values() for line in body.splitlines()]
                files = files | {value["path"]: base64.b64decode(value["content"]) for _, value in lines}
                commit = Commit(files, header["summary"], self.headers["User-Agent"], parent)
                made = repository.add(branch, commit)
                return {"commitUrl": f"{self.server.address}/{repo_id}/commit/{made}", "commitOid": made}
            case ("GET",) | ("GET", "revision", _):
                commit, files = self.found(repository, rest[1] if rest else "main")
                return {"id": repo_id, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            case "GET", "tree", revision:
                files = self.found(repository, revision)[1].items()
                return [{"type": "file", "path": name, "size": len(c), "oid": blob(c)} for name, c in files]
        raise Refused(404, "Not found")

    def create(self, name: str, organization: str, visibility: str = "", private: bool = False, **_: Any) -> Any:
        """Older clients say `private`."""
        repo_id, repositories = f"{organization}/{name}", self.server.repositories
        address = f"{self.server.address}/{repo_id}"
        if organization != OWNER:
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{organization}".')
        if repo_id in repositories:
            raise Refused(409, "You already created this model repo", url=address)
        repositories[repo_id] = Repository(private or visibility == "private")
        repositories[repo_id].add("main", Commit({".gitattributes": b""}, "initial commit", "the hub"))
        return {"url": address}

    def validate(self, card: str) -> Any:
        licence = yaml.safe_load(card.split("---\n")[1]).get("license", "other")
        if licence not in LICENCES:
            message = f'"license" must be one of [{", ".join(LICENCES)}]'
            raise Refused(400, "Invalid metadata in README.md", errors=[{"message": message}])
        return {"errors": [], "warnings": []}

    def repository(self, owner: str, name: str, token: str | None, writes: bool = False) -> Repository:
        """Nobody is told whether there is one that he may not see."""
        found = self.server.repositories.get(f"{owner}/{name}")
        if found is None or (found.private and (token is None or owner != OWNER)):
            known = (404, "Repository not found") if token else (401, "Invalid username or password.")
            raise Refused(*known, "RepoNotFound")
        if writes and owner != OWNER:
            raise Refused(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return found

    def found(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]]:
        """The id of the commit of a branch or an id, and its files."""
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, repository.commits[commit].files


class Server(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
