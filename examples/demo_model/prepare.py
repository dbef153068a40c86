"""Picks the stamps (64 x 64 pictures of everyday things) out of npm's emoji-datasource-google.

npm pack emoji-datasource-google@16.0.0
python prepare.py emoji-datasource-google-16.0.0.tgz STAMPS
"""

from __future__ import annotations

import argparse
import json
import tarfile
from pathlib import Path

from world import THINGS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(arguments.archive) as archive:

        def content(name: str) -> bytes:
            file = archive.extractfile(f"package/{name}")
            if file is None:
                raise FileNotFoundError(name)
            return file.read()

        images = {entry["short_name"]: entry["image"] for entry in json.loads(content("emoji.json"))}
        for short in THINGS:
            (arguments.out / images[short]).write_bytes(content(f"img/google/64/{images[short]}"))
    (arguments.out / "index.txt").write_text("".join(f"{short} {images[short]}\n" for short in THINGS))
    print(len(THINGS), "stamps")


if __name__ == "__main__":
    main()
