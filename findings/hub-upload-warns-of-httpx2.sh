#!/usr/bin/env bash
# huggingface_hub 2.4.0: an upload to Git LFS fails where warnings are errors.
#
# Expected: `HfApi.create_commit` uploads a file in a process that runs with -W error, as test suites do.
# What happens: the file is sent by `http_backoff("PUT", url, data=file)`; httpx2 deprecates `data=` for raw bytes, and
#   its DeprecationWarning, raised in a thread, becomes RuntimeError("Error while uploading ... to the Hub.").
#
# Output seen (against a few lines of HTTP on localhost that play the hub):
#   RuntimeError: Error while uploading 'x.bin' to the Hub.
#   caused by DeprecationWarning: Use 'content=<...>' to upload raw bytes/text content.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=0
python3 -m venv venv
venv/bin/pip install --quiet "huggingface_hub==2.4.0"
cat > push.py <<'PY'
import json
import os
import threading
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer


class Hub(BaseHTTPRequestHandler):
    def log_message(self, *_arguments):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "preupload" in self.path:
            said = {"files": [{"path": "x.bin", "uploadMode": "lfs", "shouldIgnore": False}]}
        else:
            (wanted,) = asked["objects"]
            said = {"objects": [{**wanted, "actions": {"upload": {"href": f"{os.environ['HF_ENDPOINT']}/up"}}}]}
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = HTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HUB_DISABLE_XET": "1"}
os.environ |= {"HF_TOKEN": "hf_x", "HF_HOME": os.path.abspath("home"), "NO_PROXY": "127.0.0.1"}
from huggingface_hub import CommitOperationAdd, HfApi  # noqa: E402

warnings.simplefilter("error")
try:
    HfApi().create_commit("a/b", [CommitOperationAdd("x.bin", b"123")], commit_message="m")
except RuntimeError as error:
    print(f"RuntimeError: {error}\ncaused by {type(error.__cause__).__name__}: {error.__cause__}")
PY
venv/bin/python push.py 2> /dev/null
