"""A server on the loopback address with the routes of the Hugging Face Hub that we use.

It holds repositories in memory, serves large files from another address as the Hub does, counts
requests and bytes, takes uploads, and can be told to fail.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse

LARGE = 4096  # bytes from which a file is stored as LFS


class Repository:
    """Files by revision; a token if it is private, or a gate."""

    def __init__(self, files, *, token=None, gated=False):
        self.commits, self.refs = {}, {}
        self.token, self.gated = token, gated
        self.commit(files)

    def commit(self, files, ref="main"):
        """Add a commit with these files, and move a branch to it."""
        text = "".join(f"{name} {hashlib.sha1(data).hexdigest()}" for name, data in files.items())
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[ref] = sha
        return sha

    def resolve(self, revision):
        return revision if revision in self.commits else self.refs.get(revision)


class Hub:
    """The server.

    Attributes:
        repositories: by ``owner/name``, those of data by ``datasets/owner/name``.
        requests: (method, path) of all requests.
        sent: bytes of files that were sent, by name.
        drop: files whose next connection ends after so many bytes, by name.
        short: names of files that are sent once with too few bytes.
    """

    def __init__(self):
        self.repositories, self.uploads = {}, {}
        self.requests, self.sent, self.ranges = [], {}, []
        self.drop, self.short = {}, set()
        self.down = False
        self._servers = [
            http.server.ThreadingHTTPServer(("127.0.0.1", 0), _make(self)) for _ in range(2)
        ]
        api, store = (server.server_address[1] for server in self._servers)
        self.url, self.store = f"http://127.0.0.1:{api}", f"http://localhost:{store}"
        for server in self._servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def close(self):
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def count(self, method, part=""):
        return sum(1 for verb, path in self.requests if verb == method and part in path)

    def clear(self):
        self.requests.clear()
        self.sent.clear()
        self.ranges.clear()


def _etag(data):
    return (
        hashlib.sha256(data).hexdigest() if len(data) >= LARGE else hashlib.sha1(data).hexdigest()
    )


def _make(hub):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def answer(self, value=None, code=200, **headers):
            body = b"" if value is None else json.dumps(value).encode()
            self.send_response(code)
            for name, text in headers.items():
                self.send_header(name.replace("_", "-"), text)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def refuse(self, code, error, message=""):
            self.answer({"error": message}, code, X_Error_Code=error, X_Error_Message=message)

        def handle_any(self):
            self.path = urllib.parse.unquote(self.path)
            hub.requests.append((self.command, self.path))
            length = int(self.headers.get("Content-Length") or 0)
            self.body = self.rfile.read(length)
            if hub.down:
                return self.answer({"error": "down"}, 503)
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[0] == "store":
                return self.serve_stored(*parts[1:])
            if parts[0] == "api":
                return self.serve_api(parts[1:])
            if parts[-4:] == ["info", "lfs", "objects", "batch"]:
                return self.start_upload()
            return self.serve_resolve(parts)

        do_GET = do_HEAD = do_POST = do_PUT = handle_any

        def open(self, name):
            """The repository, if this request may see it."""
            found = hub.repositories.get(name)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if found is None or (found.token and token != found.token):
                return self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            return found

        def serve_api(self, parts):
            if parts == ["validate-yaml"]:
                return self.answer({"errors": [], "warnings": []})
            if parts == ["repos", "create"]:
                return self.create(json.loads(self.body))
            if parts == ["whoami-v2"]:
                return self.answer({"name": "owner", "type": "user"})
            name, route, rest = "/".join(parts[1:3]), parts[3:4], parts[4:]
            name = f"datasets/{name}" if parts[0] == "datasets" else name
            found = self.open(name)
            if found is None:
                return None
            if route == ["refs"]:
                branches = [
                    {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": sha}
                    for ref, sha in found.refs.items()
                ]
                return self.answer({"branches": branches, "tags": [], "converts": []})
            revision = "/".join(rest) or "main"
            sha = found.resolve(revision)
            if sha is None:
                return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            if route == ["tree"]:
                return self.answer([_describe(*item) for item in found.commits[sha].items()])
            if route == ["preupload"]:
                files = json.loads(self.body)["files"]
                modes = [
                    {
                        "path": f["path"],
                        "shouldIgnore": False,
                        "uploadMode": "lfs" if f["size"] >= LARGE else "regular",
                    }
                    for f in files
                ]
                return self.answer({"files": modes})
            if route == ["commit"]:
                return self.commit(found, name)
            siblings = [{"rfilename": path} for path in found.commits[sha]]
            return self.answer({"_id": "1", "id": name, "sha": sha, "siblings": siblings})

        def serve_resolve(self, parts):
            count = 3 if parts[0] == "datasets" else 2  # which is part of the names below, too
            name, revision = "/".join(parts[:count]), parts[count + 1]
            path = "/".join(parts[count + 2 :])
            found = self.open(name)
            if found is None:
                return None
            if found.gated:
                return self.refuse(403, "GatedRepo", "Access to model is restricted")
            sha = found.resolve(revision)
            if sha is None:
                return self.refuse(404, "RevisionNotFound")
            if path not in found.commits[sha]:
                return self.refuse(404, "EntryNotFound", "Entry not found")
            data = found.commits[sha][path]
            headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
            if len(data) < LARGE:
                return self.send_file(path, data, headers)
            headers |= {
                "X-Linked-Etag": f'"{_etag(data)}"',
                "X-Linked-Size": str(len(data)),
                "Location": f"{hub.store}/store/{name}/{sha}/{path}",
            }
            return self.answer(None, 302, **headers)

        def serve_stored(self, *parts):
            if self.command == "PUT":
                hub.uploads[parts[-1]] = self.body
                return self.answer({})
            assert "Authorization" not in self.headers, "the token went to another host"
            count = 3 if parts[0] == "datasets" else 2
            name, sha, path = "/".join(parts[:count]), parts[count], "/".join(parts[count + 1 :])
            return self.send_file(path, hub.repositories[name].commits[sha][path], {})

        def send_file(self, path, data, headers):
            first = 0
            if asked := self.headers.get("Range"):
                first = int(asked.removeprefix("bytes=").split("-")[0])
                hub.ranges.append((path, first))
                headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            body = data[first:]
            if self.command == "GET" and path in hub.short:
                hub.short.remove(path)
                body = body[:-7]
                headers.pop("Content-Range", None)
            self.send_response(206 if asked else 200)
            for key, text in headers.items():
                self.send_header(key, text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            limit = hub.drop.pop(path, None)
            if limit is not None:
                body, self.close_connection = body[:limit], True
            with contextlib.suppress(OSError):
                self.wfile.write(body)
            hub.sent[path] = hub.sent.get(path, 0) + len(body)

        # ---- uploads

        def create(self, asked):
            name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
            if name in hub.repositories:
                return self.answer({"url": f"{hub.url}/{name}"}, 409, X_Error_Code="RepoExists")
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if not token:
                return self.refuse(401, "", "Invalid username or password.")
            hub.repositories[name] = Repository({".gitattributes": b""})
            return self.answer({"url": f"{hub.url}/{name}"})

        def start_upload(self):
            objects = json.loads(self.body)["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": f"{hub.store}/store/upload/{one['oid']}"}}
            self.answer({"transfer": "basic", "objects": objects})

        def commit(self, found, name):
            files = dict(found.commits[found.refs["main"]])
            lines = [json.loads(line) for line in self.body.splitlines() if line]
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.uploads[value["oid"]]
            sha = found.commit(files)
            self.answer({"commitOid": sha, "commitUrl": f"{hub.url}/{name}/commit/{sha}"})

    return Handler


def _describe(path, data):
    entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if len(data) >= LARGE:
        lfs = {"oid": _etag(data), "size": len(data), "pointerSize": 130}
        return entry | {"lfs": lfs}
    return entry


def read_folder(folder):
    """The files of a folder by their names."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
