"""serve: a family over HTTP, as OpenAI's embeddings, and on a page in the browser."""

from __future__ import annotations

import argparse

from matexport.cli.options import (
    Parsers,
    add_command,
    add_engine,
    add_family,
    add_threads,
    read_count,
    read_engine,
    read_limit,
    read_threads,
)
from matexport.cli.output import DONE, note, print_json, say
from matexport.extras import require_extra

SUMMARY = "answer embedding requests over HTTP, and show a page that runs the family in the browser"
DESCRIPTION = (
    "Serve one family on this machine: POST /v1/embeddings as OpenAI's clients ask it, GET /v1/models, GET /health, a "
    "page at / that runs the family's profiles in the browser, and the family's files under /family/. Requests of "
    "several clients share runs. SIGINT or SIGTERM ends it, after what is being answered."
)
EXAMPLES = (
    "examples:\n"
    "  matexport serve artifacts/minilm\n"
    "  matexport serve artifacts/minilm --profile L06-D384-int8 --engine native --port 9000\n"
    "  curl http://127.0.0.1:8000/v1/embeddings -H 'Content-Type: application/json' -d '{\"input\": [\"a text\"]}'"
)
PORT = 8000
MOST_PORT = 65_535


def add_parser(parsers: Parsers) -> None:
    """What the command takes, and the help that teaches it."""
    command = add_command(parsers, "serve", run, SUMMARY, DESCRIPTION, EXAMPLES)
    add_family(command)
    command.add_argument(
        "--profile",
        metavar="PROFILE",
        help="of requests that name no model (default: the deepest and widest, in the first of its precisions)",
    )
    command.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="HOST",
        help="address to listen at (default: 127.0.0.1; any other lets other machines in, without a password)",
    )
    command.add_argument(
        "--port", type=read_port, default=PORT, metavar="PORT", help=f"port (default: {PORT}; 0 takes a free one)"
    )
    add_threads(command, "threads of all runs together (default: all CPUs of this process)")
    add_engine(command)
    command.add_argument(
        "--runs",
        type=read_threads,
        metavar="N",
        help="runs at a time, which share the threads (default: 1; more answer more requests per second when many come "
        "at once, and each alone takes longer)",
    )
    command.add_argument("--max-texts", type=read_count, metavar="N", help="texts of one request (default: 2048)")
    command.add_argument(
        "--max-body-mb", type=read_limit, metavar="MB", help="size of one request in MB (default: 8.4)"
    )
    command.add_argument(
        "--max-waiting",
        type=read_count,
        metavar="N",
        help="texts of all requests that may wait; further ones are answered with 503 (default: 8192)",
    )


def read_port(text: str) -> int:
    """A port, or 0 for one that is free.

    Raises:
        ArgumentTypeError: the text is none.
    """
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(MOST_PORT)) else -1
    if not 0 <= number <= MOST_PORT:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a port, 0 to {MOST_PORT}")
    return number


def run(options: argparse.Namespace) -> int:
    """``matexport serve FAMILY``"""
    require_extra("serve", "serving", {"starlette": "starlette", "uvicorn": "uvicorn", "httptools": "httptools"})
    from matexport.serve.app import UNBUILT
    from matexport.serve.asked import Limits
    from matexport.serve.server import open_server

    asked = {
        "runs": options.runs,
        "texts": options.max_texts,
        "waiting_texts": options.max_waiting,
        "body_bytes": options.max_body_mb and int(options.max_body_mb * 1e6),
    }
    server = open_server(
        options.family,
        host=options.host,
        port=options.port,
        profile=options.profile,
        engine=read_engine(options, options.threads),
        limits=Limits(**{name: value for name, value in asked.items() if value is not None}),
    )
    if not server.has_page:
        note(UNBUILT)
    if options.json:
        print_json({"url": server.url, "model": server.service.default, "page": server.has_page})
    else:
        say(f"serving {options.family} at {server.url} (model {server.service.default}); Ctrl-C ends it", flush=True)
    server.run_bound()
    return DONE
