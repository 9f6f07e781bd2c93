"""A W&B server on loopback: just enough of one to receive runs, and to remember what it got."""

import gzip
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

API_KEY = "0123456789abcdef" * 2 + "01234567"  # W&B's keys have 40 digits


@dataclass
class ReceivedRun:
    """What the server knows of a run."""

    rows: dict[int, dict[str, Any]] = field(default_factory=dict)  # by line of the history file
    summary: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)  # of the last upsert
    exit_code: int | None = None

    @property
    def steps(self) -> list[int]:
        """The step of each history line, in the order of the file."""
        return [self.rows[line]["_step"] for line in sorted(self.rows)]


@dataclass
class ReceivedArtifact:
    """What the server knows of an artifact. `files` by their names in it."""

    type: str
    aliases: list[str]
    run_id: str
    files: dict[str, bytes] = field(default_factory=dict)
    is_committed: bool = False


class WandbServer:
    """Serves on `url` between `start` and `stop`.

    `runs` holds what arrived, by run id, `artifacts` by their names.

    Args:
        delay: seconds that each answer takes.
        refusal: the HTTP status that each answer has; `None` answers as W&B does.
    """

    def __init__(self, *, delay: float = 0.0, refusal: int | None = None) -> None:
        self.delay = delay
        self.refusal = refusal
        self.runs: dict[str, ReceivedRun] = {}
        self.artifacts: dict[str, ReceivedArtifact] = {}
        self._http = _QuietServer(("127.0.0.1", 0), _Handler)
        self._http.wandb = self  # type: ignore[attr-defined]  # how a handler finds its server
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop listening: from here on connections are refused."""
        self._http.shutdown()
        self._http.server_close()

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data for one GraphQL operation."""
        account = {"id": "E", "name": "me"}
        match operation:
            case "UpsertBucket":
                return self._upsert(variables, account)
            case "RunResumeStatus":
                return {
                    "model": {"id": "P", "name": "p", "entity": account, "bucket": self._bucket(variables)}
                }
            case "Viewer":
                viewer = {"id": "V", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
                return {"viewer": viewer}
            case "ServerInfo":
                versions = {"cliVersionInfo": {"max_cli_version": "9"}, "latestLocalVersionInfo": None}
                return {"serverInfo": versions}
            case "CreateRunFiles":
                return self._upload_places(variables)
            case "ArtifactType":  # W&B asks whether the name is taken by another type
                return {"project": {"artifact": None}}
            case "CreateArtifact":
                return {"createArtifact": {"artifact": self._create_artifact(variables["input"])}}
            case "CreateArtifactManifest" | "UpdateArtifactManifest":
                place = {"id": "F", "uploadUrl": f"{self.url}/upload/manifest", "uploadHeaders": []}
                answered = {"artifactManifest": {"id": "M", "file": place}}
                return {operation[0].lower() + operation[1:]: answered}
            case "CreateArtifactFiles":
                return {"createArtifactFiles": {"files": {"edges": self._artifact_places(variables)}}}
            case "CommitArtifact":
                self.artifacts[variables["artifactID"]].is_committed = True
                return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "D"}}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case _:
                return {}

    def receive_stream(self, run_id: str, body: dict[str, Any]) -> None:
        """Take a chunk of a run's file stream: lines are set at their offset."""
        run = self.runs.setdefault(run_id, ReceivedRun())
        files = body.get("files") or {}
        history = files.get("wandb-history.jsonl", {})
        for index, line in enumerate(history.get("content", []), history.get("offset", 0)):
            run.rows[index] = json.loads(line)
        for line in files.get("wandb-summary.json", {}).get("content", []):
            run.summary = json.loads(line)
        if body.get("complete"):
            run.exit_code = body.get("exitcode")

    def receive_file(self, path: str, content: bytes) -> None:
        """Take an uploaded file; those of artifacts are kept."""
        match path.split("/"):
            case ["", "artifact", name, file]:
                self.artifacts[name].files[file] = content

    def _create_artifact(self, wanted: dict[str, Any]) -> dict[str, Any]:
        name = wanted["artifactCollectionName"]
        aliases = [each["alias"] for each in wanted["aliases"]]
        self.artifacts[name] = ReceivedArtifact(wanted["artifactTypeName"], aliases, wanted["runName"])
        return {"id": name, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}

    def _artifact_places(self, variables: dict[str, Any]) -> list[dict[str, Any]]:
        nodes = []
        for file in variables["input"]["artifactFiles"]:
            place = f"{self.url}/artifact/{file['artifactID']}/{file['name']}"
            node = {"storagePath": file["name"], "uploadUrl": place, "uploadHeaders": []}
            nodes.append(node | {"uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}})
        return [{"node": node} for node in nodes]

    def _upload_places(self, variables: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": variables.get("run"), "uploadHeaders": [], "files": files}}

    def _upsert(self, variables: dict[str, Any], account: dict[str, Any]) -> dict[str, Any]:
        name = variables.get("name") or variables.get("id", "")
        run = self.runs.setdefault(name, ReceivedRun())
        run.params |= {key: value for key, value in variables.items() if value is not None}
        project = {"id": "P", "name": variables.get("project"), "entity": account}
        bucket = {
            "id": name,
            "name": name,
            "displayName": run.params.get("displayName"),
            "config": "{}",
            "sweepName": None,
            "project": project,
            "historyLineCount": len(run.rows),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _bucket(self, variables: dict[str, Any]) -> dict[str, Any] | None:
        """What a client needs to resume a run, `None` if there is no such run."""
        run = self.runs.get(variables["name"])
        if run is None:
            return None
        last = [json.dumps(run.rows[max(run.rows)])] if run.rows else []
        return {
            "id": variables["name"],
            "name": variables["name"],
            "historyLineCount": len(run.rows),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps(last),
            "eventsTail": "[]",
            "summaryMetrics": json.dumps(run.summary),
            "config": "{}",
            "tags": run.params.get("tags") or [],
            "wandbConfig": '{"t": 1}',
        }


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:  # a client that hangs up is no news
        return


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = json.loads(body or b"{}")
        server: WandbServer = self.server.wandb  # type: ignore[attr-defined]  # set by WandbServer
        if server.refusal is not None:
            self._send({"errors": [{"message": "refused"}]})
        elif self.path.endswith("/graphql"):
            named = re.search(r"(?:query|mutation)\s+(\w+)", request.get("query", ""))
            answer = server.answer(named[1] if named else "", request.get("variables") or {})
            self._send({"data": answer})
        else:
            if "file_stream" in self.path:
                server.receive_stream(self.path.split("/")[-2], request)
            self._send({})

    def do_GET(self) -> None:
        self._send({})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server: WandbServer = self.server.wandb  # type: ignore[attr-defined]  # set by WandbServer
        server.receive_file(self.path, content)
        self._send({})

    def log_message(self, format: str, *args: object) -> None:  # no line on stderr for each request
        return

    def _send(self, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        server: WandbServer = self.server.wandb  # type: ignore[attr-defined]  # set by WandbServer
        time.sleep(server.delay)
        self.send_response(server.refusal or 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
