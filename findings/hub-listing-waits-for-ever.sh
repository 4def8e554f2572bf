#!/usr/bin/env bash
# huggingface_hub 2.4.0: HfApi.list_repo_tree and HfApi.repo_info wait for ever for an endpoint that does not answer.
#
# Expected: what HF_HUB_DOWNLOAD_TIMEOUT and HF_HUB_ETAG_TIMEOUT (10 s both) do for downloads holds for listings, too.
# What happens: the shared client has timeout=None, repo_info passes its own default None on, and list_repo_tree's pages
#   are asked with timeout=None and have no argument for it. A server that accepts a connection and says nothing holds
#   the caller until it is killed. (matexport sets limits in an event hook of the session: `matexport.hub.remote.use_hub`.)
#
# Output seen:
#   list_repo_tree: still waiting after 40 s
#   repo_info: still waiting after 40 s
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=0
python3 -m venv venv
venv/bin/pip install --quiet "huggingface_hub==2.4.0"
cat > ask.py <<'PY'
import os
import socket
import sys

silent = socket.create_server(("127.0.0.1", 0))
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}", "HF_HUB_ETAG_TIMEOUT": "2"}
os.environ |= {"HF_HUB_DOWNLOAD_TIMEOUT": "2", "HF_HOME": os.path.abspath("home"), "NO_PROXY": "127.0.0.1"}
from huggingface_hub import HfApi  # noqa: E402

asked = {
    "list_repo_tree": lambda: list(HfApi().list_repo_tree("a/b")),
    "repo_info": lambda: HfApi().repo_info("a/b"),
}
try:
    asked[sys.argv[1]]()
except Exception as error:
    print(f"{sys.argv[1]}: {type(error).__name__}")
PY
for name in list_repo_tree repo_info; do
  timeout 40 venv/bin/python ask.py "$name" 2> /dev/null || echo "$name: still waiting after 40 s"
done
