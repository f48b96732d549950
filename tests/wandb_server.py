"""A W&B server as small as a run can do with, which can be told to fail; and the records of offline runs."""

import json
import struct
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class WandbServer:
    """Answers every GraphQL request with all that any of them asks for, and keeps the lines of history by run id.

    `status` other than 200 is what it answers from now on; 0 is no answer at all, except to telemetry, which would only
    take up time at the end.
    """

    def __init__(self, status: int = 200) -> None:
        server, self.status = self, status
        self.history: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.summary: dict[str, str] = {}
        self.has_run = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                is_telemetry = "/otel/" in self.path
                status = 200 if is_telemetry else server.status
                if status == 0:
                    threading.Event().wait()
                reply = server.reply(self.path, json.loads(body)) if status == 200 and not is_telemetry else {}
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that is gone
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def reply(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path.startswith("/files/"):
            run_id, files = path.split("/")[4], body.get("files") or {}
            if history := files.get("wandb-history.jsonl"):
                self.history[run_id][history["offset"] :] = map(json.loads, history["content"])
            if summary := files.get("wandb-summary.json"):
                self.summary[run_id] = summary["content"][-1]
            return {"limits": {}}
        variables = body.get("variables") or {}
        run_id, entity = str(variables.get("name")), {"id": "e", "name": "me"}
        project = {"id": "p", "name": "pg_lightning", "entity": entity}
        lines = self.history[run_id]
        run = {"id": f"gid-{run_id}", "name": run_id, "displayName": run_id, "config": "{}", "project": project}
        resumed = {
            **run,
            "summaryMetrics": self.summary.get(run_id, "{}"),
            "historyLineCount": len(lines),
            "historyTail": json.dumps([json.dumps(line) for line in lines[-1:]]),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "tags": [],
            "wandbConfig": '{"t": 1}',
        }
        if "upsertBucket" in body["query"]:
            self.has_run.set()
        return {
            "data": {
                "viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
                "serverInfo": {"features": [], "cliVersionInfo": {"max_cli_version": "9.9.9"}},
                "upsertBucket": {"bucket": run, "inserted": not lines},
                "model": {**project, "bucket": resumed if lines else None},
                "createRunFiles": {"runID": run_id, "uploadHeaders": [], "files": []},
            }
        }


def read_offline(run: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    """The lines of history of the only offline run in a folder, and all its records."""
    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    found = list(records(file.read_bytes()))
    history = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]
    return history, found


def records(data: bytes) -> Iterator[Any]:
    """The records of a `.wandb` file, a LevelDB log: blocks of 32 KiB, a record's parts behind 7 bytes each."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # in one part, or the last
            yield Record.FromString(whole)
            whole = b""
