"""Fetch the upstream data files at pinned commits and verify each one before it takes its place.

`python -m rolib.data.download [--root DIR]` fills the cache folder (or DIR). The table of files is upstream.csv;
files that are known by their git blob id only are checked by that id, the others by SHA-256.
"""

import argparse
import csv
import hashlib
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pooch

from rolib.data.tasks import SAMPLE

BASE_URL = "https://raw.githubusercontent.com"
COMMAND = "python -m rolib.data.download"
LICENCES = "The data sets carry their own licences (see each LICENSE file); LaRoSeDa and MOROCO are non-commercial."


class UpstreamFile(NamedTuple):
    path: str  # below the data root; its first folder is the name of the data set
    url: str  # below the base URL: owner/repository/commit/path
    algorithm: str  # "sha256" | "git-blob"
    checksum: str


with open(Path(__file__).with_name("upstream.csv"), encoding="utf-8", newline="") as _table:
    FILES = tuple(UpstreamFile(*row) for row in list(csv.reader(_table))[1:])


def checksum(path, algorithm) -> str:
    """Hex digest of a file: "sha256", or "git-blob" (SHA-1 over `blob <length>`, a zero byte and the bytes)."""
    if algorithm == "sha256":
        return pooch.file_hash(str(path), alg="sha256")
    content = Path(path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def verify(path, file: UpstreamFile):
    """Raise ValueError if the checksum of the file at `path` is not the one in the table."""
    found = checksum(path, file.algorithm)
    if found != file.checksum:
        mend = f"delete it if it is still there, and run `{COMMAND}` again"
        raise ValueError(
            f"{path} is damaged: its {file.algorithm} checksum is {found}, expected {file.checksum}: {mend}"
        )


def download(root, base_url=BASE_URL):
    """Fetch the upstream files of all data sets into the folder `root`.

    A file that is already there is verified, not fetched again. Each file is fetched under a temporary name and takes
    its place only when its checksum is right, so a broken transfer leaves nothing behind.
    Raises ValueError for a damaged file, OSError for a failed transfer.
    """
    for file in FILES:
        target, url = Path(root) / file.path, f"{base_url}/{file.url}"
        if target.exists():
            verify(target, file)
            continue
        print(file.path, file=sys.stderr)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        try:
            pooch.HTTPDownloader(progressbar=True, chunk_size=2**16)(url, str(part), None)
            verify(part, file)
            os.replace(part, target)
        except OSError as error:  # requests' errors are OSErrors
            raise OSError(
                f"{target}: the transfer of {url} failed ({error}); run `{COMMAND}` again"
            ) from error
        finally:
            part.unlink(missing_ok=True)


def data_root(setting) -> Path:
    """Turn the setting of the data root into a folder: "sample", "real" or a path.

    "sample" is the built-in sample; "real" is $ROLIB_DATA where that is set, else the complete download cache.
    Raises FileNotFoundError if the folder or a file of the cache is missing.
    """
    if setting == "sample":
        return SAMPLE
    if folder := os.environ.get("ROLIB_DATA") if setting == "real" else setting:
        if not Path(folder).is_dir():
            raise FileNotFoundError(
                f"the data root {str(folder)!r} is no folder: set `data` or ROLIB_DATA to one that exists"
            )
        return Path(folder)
    cache = Path(pooch.os_cache("rolib"))
    if missing := [file.path for file in FILES if not (cache / file.path).is_file()]:
        found = f"{len(missing)} of {len(FILES)} data files are not in {cache} (the first is {missing[0]})"
        raise FileNotFoundError(f"{found}: run `{COMMAND}`, or set ROLIB_DATA to a mirror")
    return cache


def main(arguments=None):
    """The command line: fetch and verify; errors are one line."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description="Fetch and verify the data sets.", epilog=LICENCES
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=pooch.os_cache("rolib"),
        help="folder to fill (default: %(default)s)",
    )
    root = parser.parse_args(arguments).root
    print(LICENCES)
    try:
        download(root)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"The data is complete and verified: {root}")


if __name__ == "__main__":
    main()
