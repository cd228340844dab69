"""A small Hugging Face on the loopback address: repositories, downloads, commits and a search."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class LocalHub:
    """The state of the server, which tests read and change."""

    def __init__(self):
        self.repositories = {}
        """Commits by repository: pairs of a digest and files by path."""
        self.gated = set()
        self.read_only = False
        self.large = True
        """Whether weights and zips are served with their sha256, as Hugging Face serves LFS files."""
        self.listed = []
        self.requests = []

    def put(self, name, files):
        """Add a commit."""
        digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repositories.setdefault(name, []).append((digest, dict(files)))
        return digest

    def at(self, name, revision):
        """A commit of a repository, by its digest or `main`."""
        commits = self.repositories[name]
        return (
            commits[-1]
            if revision == "main"
            else dict(commits)[revision]
            and next(commit for commit in commits if commit[0] == revision)
        )

    def etag(self, path, content):
        large = self.large and path.endswith((".zip", ".safetensors"))
        return (hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    @property
    def hub(self):
        return self.server.hub

    @property
    def root(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, content=b"", status=200, **headers):
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(raw), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def missing(self, code, status=404):
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        url = urlsplit(self.path)
        parts = unquote(url.path).strip("/").split("/")
        self.hub.requests.append((self.command, url.path))
        if parts == ["api", "models"]:
            text = parse_qs(url.query).get("search", [""])[0]
            return self.answer(
                [one for one in self.hub.listed if text.lower() in one["id"].lower()]
            )
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        what = parts[4:] if api else parts[2:]
        if name not in self.hub.repositories:
            return self.missing("RepoNotFound", 401 if not api else 404)
        if name in self.hub.gated:
            return self.missing("GatedRepo", 403)
        revision = what[1] if len(what) > 1 else "main"
        try:
            commit, files = self.hub.at(name, revision)
        except KeyError:
            return self.missing("RevisionNotFound")
        if api and (not what or what[0] == "revision"):
            siblings = [{"rfilename": path} for path in files]
            return self.answer({"id": name, "sha": commit, "siblings": siblings})
        if api and what[0] == "tree":
            return self.answer([self.entry(path, content) for path, content in files.items()])
        path = "/".join(what[2:])
        if path not in files:
            return self.missing("EntryNotFound")
        etag = f'"{self.hub.etag(path, files[path])}"'
        return self.answer(files[path], ETag=etag, X_Repo_Commit=commit)

    def entry(self, path, content):
        found = {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
        etag = self.hub.etag(path, content)
        if len(etag) == 64:
            found["lfs"] = {"oid": etag, "size": len(content), "pointerSize": 100}
        return found

    def do_POST(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(("POST", self.path))
        if parts == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        if self.hub.read_only:
            return self.missing("Forbidden", 403)
        if parts == ["api", "repos", "create"]:
            made = json.loads(body)
            name = "/".join(filter(None, (made.get("organization"), made["name"])))
            self.hub.repositories.setdefault(name, [("0" * 40, {})])
            return self.answer({"url": f"{self.root}/{name}", "id": name})
        name, what = "/".join(parts[2:4]), parts[4]
        if what == "preupload":
            files = json.loads(body)["files"]
            return self.answer(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for f in files
                    ]
                }
            )
        assert what == "commit", self.path
        _, files = self.hub.at(name, "main")
        files = dict(files)
        for line in body.decode().splitlines():
            change = json.loads(line)
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "deletedFile":
                files.pop(value["path"])
        commit = self.hub.put(name, files)
        return self.answer(
            {
                "commitOid": commit,
                "commitUrl": f"{self.root}/{name}/commit/{commit}",
                "success": True,
            }
        )


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # files are asked for at once


@contextmanager
def serve():
    """A running hub and its address."""
    server = Server(("127.0.0.1", 0), Handler)
    server.hub = LocalHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
