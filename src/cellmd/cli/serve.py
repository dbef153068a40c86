"""Serve a model: OpenAI's interfaces under /v1, and a page to talk with it at /.

    cellmd serve model.cellmd
    cellmd serve model.cellmd --host 0.0.0.0 --api-key "$(cat key)" --slots 8

Without --host only this machine can reach it. The key may also come from the environment, CELLMD_API_KEY.
SIGTERM and Ctrl-C let the answers that are being made end first.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from cellmd.cli import options
from cellmd.errors import BackendError
from cellmd.server.memory import share_memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the .cellmd file")
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: %(default)s)")
    group.add_argument("--port", type=int, default=8080, metavar="N", help="default: %(default)s")
    group.add_argument("--api-key", metavar="KEY", help="what clients have to show as `Authorization: Bearer KEY`")
    group.add_argument("--public-without-key", action="store_true", help="let other machines in without a key")
    group.add_argument("--origin", action="append", metavar="URL", help="a site whose pages may use it; repeatable")
    group.add_argument("--name", metavar="NAME", help="what the model is called (default: the file's name)")
    group.add_argument("--slots", type=int, default=4, metavar="N", help="answers made at once (default: %(default)s)")
    group.add_argument(
        "--queue", type=int, default=64, metavar="N", help="requests that may wait (default: %(default)s)"
    )
    group.add_argument("--allow-urls", action="store_true", help="fetch media by http(s) from public hosts")
    group.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="keep beginnings of prompts and encoded media here, for after a restart",
    )
    group.add_argument(
        "--cache-size", type=float, default=4.0, metavar="GB", help="of that folder at most (default: %(default)g)"
    )
    options.add_machine(parser)


def run(args: argparse.Namespace) -> int:
    share_memory()
    try:
        from cellmd.server.run import serve
        from cellmd.server.settings import ServerSettings
    except ImportError as error:
        raise BackendError(f"the server needs {error.name}: pip install 'cellmd[server]'") from error
    settings = ServerSettings(
        host=args.host,
        port=args.port,
        api_key=args.api_key if args.api_key is not None else os.environ.get("CELLMD_API_KEY"),
        public_without_key=args.public_without_key,
        origins=tuple(args.origin or ()),
        name=args.name or args.file.stem,
        allow_urls=args.allow_urls,
        cache_dir=args.cache_dir,
        cache_bytes=int(args.cache_size * 1e9),
    )
    with options.load_model(args, args.file) as model:
        shown = f"[{args.host}]" if ":" in args.host else args.host
        print(f"serving {settings.name} at http://{shown}:{args.port}", file=sys.stderr, flush=True)
        serve(model, settings, slots=args.slots, queue_limit=args.queue)
    return 0
