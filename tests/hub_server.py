"""A stand-in for the Hugging Face Hub on loopback: the calls that transformers, datasets and huggingface_hub make.

``HF_ENDPOINT`` and ``HF_HOME`` are read when huggingface_hub is imported, so clients belong into processes of their
own: ``subprocess.run(..., env=hub.environment(home))``.
"""

import base64
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import yaml
from hub_repositories import Refusal, Repo, commit_id, object_id, read_folder

TOKEN, USER = "hf_stand_in", "tester"
BINARY = (".safetensors", ".parquet", ".bin")  # what the Hub keeps as LFS objects

API = re.compile(r"/api/(models|datasets)/(.+?)(?:/(revision|tree|paths-info|preupload|commit)/([^/]+)/?(.*))?")
RESOLVE = re.compile(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)")
BATCH = re.compile(r"/(.+)\.git/info/lfs/objects/batch")


class HubServer:
    """Serves repositories made from folders, and takes pushes; a context manager.

    Args:
        models: repository id → folder.
        datasets: repository id → folder, or (folder, commit as 40 hex digits).
        lfs: whether weights are to be uploaded as LFS objects. With ``hf_xet`` installed, huggingface_hub sends those
            by the Xet protocol only, whatever the server offers, unless ``HF_HUB_DISABLE_XET`` is set, as
            ``environment`` does. False: all files come inside the commit, and any client can push.
        token: the one that may write, to repositories of ``USER``.

    Attributes:
        requests: (method, path without query) of every request, in order.
        repos: ("models" | "datasets", repository id) → ``Repo``.
    """

    def __init__(
        self,
        models: dict[str, Path] | None = None,
        datasets: dict[str, Path | tuple[Path, str]] | None = None,
        *,
        lfs: bool = False,
        token: str = TOKEN,
    ):
        self.repos: dict[tuple[str, str], Repo] = {}
        for kind, given in (("models", models), ("datasets", datasets)):
            for name, source in (given or {}).items():
                folder, sha = source if isinstance(source, tuple) else (source, None)
                files = read_folder(folder)
                self.repos[kind, name] = Repo({sha or commit_id(files): files})
        self.lfs, self.token = lfs, token
        self.requests: list[tuple[str, str]] = []
        self.objects: dict[str, bytes] = {}  # uploaded LFS objects by their SHA-256
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, *, token: str | None = None) -> dict[str, str]:
        """Environment of a client process that knows this Hub, nothing else, and keeps its files under ``home``."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        kept |= {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        return kept | ({"HF_TOKEN": token} if token else {})

    # ------------------------------------------------------------------------------------------------------- lookups

    def repo(self, kind: str, name: str) -> Repo:
        if (kind, name) not in self.repos:
            raise Refusal(404, "RepoNotFound", "Repository not found")
        return self.repos[kind, name]

    def files(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repo = self.repo(kind, name)
        sha = repo.head if revision == "main" else revision
        if sha not in repo.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repo.commits[sha]

    def info(self, kind: str, name: str, revision: str) -> dict[str, Any]:
        sha, files = self.files(kind, name, revision)
        siblings = [{"rfilename": path} for path in files]
        return {
            **{"_id": sha[:24], "id": name, "modelId": name, "sha": sha, "tags": [], "siblings": siblings},
            **{"private": self.repo(kind, name).private, "gated": False, "disabled": False, "downloads": 0, "likes": 0},
        }

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(content), "oid": object_id(content)}
        if path.endswith(BINARY):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry

    def tree(self, files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
        """Entries below a folder; without ``recursive``, its own only."""
        prefix = f"{folder}/" if folder else ""
        names = [name for name in files if name.startswith(prefix)]
        if folder and not names:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist")
        parents = {str(parent) for name in names for parent in Path(name).parents if str(parent) != "."}
        folders = sorted(parent for parent in parents if parent.startswith(prefix))
        entries = [{"type": "directory", "path": path, "size": 0, "oid": object_id(path.encode())} for path in folders]
        entries += [self.entry(name, files[name]) for name in names]
        return [entry for entry in entries if recursive or "/" not in entry["path"].removeprefix(prefix)]

    # -------------------------------------------------------------------------------------------------------- pushes

    def create(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        owner = body.get("organization") or USER
        if owner != USER:
            raise Refusal(403, "", f"You don't have the rights to create a model under the namespace {owner!r}.")
        name, kind = f"{owner}/{body['name']}", f"{body.get('type', 'model')}s"
        answer = {"url": f"{self.url}/{'datasets/' if kind == 'datasets' else ''}{name}", "name": name}
        if (kind, name) in self.repos:
            return 409, {**answer, "error": "You already created this model repo"}
        first = {".gitattributes": "".join(f"*{end} filter=lfs diff=lfs\n" for end in BINARY).encode()}
        private = body.get("visibility") == "private"
        self.repos[kind, name] = Repo({commit_id(first): first}, private)
        return 200, answer

    def validate(self, card: str) -> tuple[int, dict[str, Any]]:
        """What is wrong with the metadata of a card; of the Hub's many rules, that it is a YAML mapping."""
        head = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
        fine = head is None or isinstance(yaml.safe_load(head[1]), dict)
        errors = [] if fine else [{"message": "metadata must be a mapping"}]
        return (200 if fine else 400), {"errors": errors, "warnings": []}

    def preupload(self, files: dict[str, bytes], body: dict[str, Any]) -> dict[str, Any]:
        answer = []
        for file in body["files"]:
            path = file["path"]
            mode = "lfs" if self.lfs and path.endswith(BINARY) else "regular"
            oid = object_id(files[path]) if path in files else None
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answer}

    def batch(self, body: dict[str, Any]) -> dict[str, Any]:
        """Where to put LFS objects; one that is there already gets no actions."""
        there, objects = self.objects, []
        for wanted in body["objects"]:
            upload = {"actions": {"upload": {"href": f"{self.url}/objects/{wanted['oid']}"}}}
            objects.append(wanted | ({} if wanted["oid"] in there else upload))
        return {"transfer": "basic", "objects": objects}

    def commit(self, kind: str, name: str, lines: bytes) -> dict[str, Any]:
        repo = self.repo(kind, name)
        files, message = dict(repo.files), ""
        for item in map(json.loads, lines.splitlines()):
            value = item["value"]
            match item["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        sha = commit_id(files)
        repo.commits[sha] = files
        repo.messages.append(message)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{name}/commit/{sha}"}


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing: ``hub.requests`` has it."""

        def answer(self, status: int, body: bytes | dict | list = b"", **headers: str) -> None:
            kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            headers = {"Content-Type": kind, "Content-Length": str(len(content))} | headers
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            path, body = unquote(parts.path), self.body()
            with hub.lock:
                hub.requests.append((self.command, path))
                try:
                    self.route(path, parts.query, body)
                except Refusal as refusal:
                    headers = {"X_Error_Code": refusal.code, "X_Error_Message": str(refusal)}
                    headers |= {"X_Repo_Commit": refusal.commit} if refusal.commit else {}
                    self.answer(refusal.status, {"error": str(refusal)}, **headers)

        do_GET = do_HEAD = do_POST = do_PUT = handle_any

        def authorised(self) -> None:
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                raise Refusal(401, "", "Invalid credentials in Authorization header")

        def route(self, path: str, query: str, body: bytes) -> None:
            if path.startswith("/objects/") and self.command == "PUT":  # signed addresses: no token
                hub.objects[path.removeprefix("/objects/")] = body
                self.answer(200)
            elif self.command in ("GET", "HEAD"):
                self.read(path, query)
            elif "/paths-info/" in path:
                self.paths_info(path, body)
            elif path == "/api/validate-yaml":  # asked about a README.md that is about to be pushed
                self.answer(*hub.validate(json.loads(body)["content"]))
            else:
                self.authorised()
                self.write(path, body)

        def read(self, path: str, query: str) -> None:
            if match := RESOLVE.fullmatch(path):
                self.resolve("datasets" if match[1] else "models", *match.groups()[1:])
            elif path == "/api/whoami-v2":
                self.authorised()
                self.answer(200, {"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})
            elif (match := API.fullmatch(path)) and match[3] in (None, "revision"):
                self.answer(200, hub.info(match[1], match[2], match[4] or "main"))
            elif match and match[3] == "tree":
                sha, files = hub.files(match[1], match[2], match[4])
                entries = hub.tree(files, match[5], "recursive=true" in query.lower())
                self.answer(200, entries, X_Repo_Commit=sha)
            elif path == "/":
                self.answer(200)
            else:
                raise Refusal(404, "", f"no such page: {path}")

        def resolve(self, kind: str, name: str, revision: str, path: str) -> None:
            sha, files = hub.files(kind, name, revision)
            if path not in files:
                raise Refusal(404, "EntryNotFound", f"{path} does not exist", sha)
            lfs = path.endswith(BINARY)
            etag = hashlib.sha256(files[path]).hexdigest() if lfs else object_id(files[path])
            self.answer(200, files[path], ETag=f'"{etag}"', X_Repo_Commit=sha)

        def paths_info(self, path: str, body: bytes) -> None:
            kind, name, _, revision, _ = API.fullmatch(path).groups()
            _, files = hub.files(kind, name, revision)
            wanted = json.loads(body)["paths"]
            self.answer(200, [entry for entry in hub.tree(files, "", True) if entry["path"] in wanted])

        def write(self, path: str, body: bytes) -> None:
            if path == "/api/repos/create":
                status, answer = hub.create(json.loads(body))
                self.answer(status, answer)
            elif match := BATCH.fullmatch(path):
                hub.repo("models", match[1])
                self.answer(200, hub.batch(json.loads(body)))
            elif (match := API.fullmatch(path)) and match[3] == "preupload":
                _, files = hub.files(match[1], match[2], match[4])
                self.answer(200, hub.preupload(files, json.loads(body)))
            elif match and match[3] == "commit":
                self.answer(200, hub.commit(match[1], match[2], body))
            else:
                raise Refusal(404, "", f"no such page: {path}")

    return Handler
