"""Fetch the upstream data files at pinned commits and verify their checksums.

`python -m rolib.data.download [--root DIR]` fills the cache folder, or DIR. upstream.csv lists the
files. Where only the git blob id of a file is known, that is its checksum; else it is SHA-256.
"""

import argparse
import csv
import hashlib
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pooch

from rolib.data import COMMAND, SAMPLE

LICENCES = "Each data set has its own licence. LaRoSeDa and MOROCO are non-commercial."


class UpstreamFile(NamedTuple):
    """A line of upstream.csv."""

    path: str  # below the data root; its first folder is the name of the data set
    url: str  # below the base URL: owner/repository/commit/path
    algorithm: str  # "sha256" | "git-blob"
    checksum: str


with open(Path(__file__).with_name("upstream.csv"), encoding="utf-8", newline="") as _table:
    FILES = tuple(UpstreamFile(**row) for row in csv.DictReader(_table))


def checksum(path: Path | str, algorithm: str) -> str:
    """Hex digest of a file: "sha256", or "git-blob".

    A git blob id is the SHA-1 of `blob <length>`, a zero byte and the content.
    """
    if algorithm == "sha256":
        return pooch.file_hash(str(path), alg="sha256")
    content = Path(path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def verify(path: Path | str, file: UpstreamFile) -> None:
    """Raise ValueError if the file at `path` does not have the checksum of the table."""
    found = checksum(path, file.algorithm)
    if found != file.checksum:
        fault = f"its {file.algorithm} checksum is {found}, expected {file.checksum}"
        raise ValueError(f"{path} is damaged: {fault}: delete it and run `{COMMAND}` again")


def download(root: Path | str, base_url: str = "https://raw.githubusercontent.com") -> None:
    """Fetch the upstream files of all data sets into the folder `root`.

    A file that is already there is verified, not fetched again. Each file is fetched under a
    temporary name and renamed when its checksum is right, so a broken transfer leaves nothing.
    Raises ValueError for a damaged file and OSError for a failed transfer.
    """
    fetch = pooch.HTTPDownloader(progressbar=True, chunk_size=2**16)
    for file in FILES:
        target = Path(root) / file.path
        if target.exists():
            verify(target, file)
            continue
        print(file.path, file=sys.stderr)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        try:
            fetch(f"{base_url}/{file.url}", str(part), None)
            verify(part, file)
            part.replace(target)
        except OSError as error:  # the errors of requests are OSErrors
            raise OSError(f"{file.path}: the transfer failed ({error}); run `{COMMAND}`") from error
        finally:
            part.unlink(missing_ok=True)


def data_root(setting: Path | str) -> Path:
    """The folder of a data root: "sample" (built in), "real" or a path.

    "real" is $ROLIB_DATA if that is set, else the complete download cache.
    Raises FileNotFoundError if the folder or a file of the cache is missing.
    """
    if setting == "sample":
        return SAMPLE
    folder = os.environ.get("ROLIB_DATA") if setting == "real" else setting
    if folder:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"data root '{folder}' is no folder: set `data` or ROLIB_DATA")
        return Path(folder)
    cache = Path(pooch.os_cache("rolib"))
    missing = [file.path for file in FILES if not (cache / file.path).is_file()]
    if missing:
        found = f"{len(missing)} of {len(FILES)} data files are missing ({cache / missing[0]}, ...)"
        raise FileNotFoundError(f"{found}: run `{COMMAND}`, or set ROLIB_DATA to a mirror")
    return cache


def main(arguments: list[str] | None = None) -> None:
    """The command line: fetch and verify. An error is one line."""
    parser = argparse.ArgumentParser(COMMAND, description=__doc__, epilog=LICENCES)
    parser.add_argument("--root", type=Path, default=pooch.os_cache("rolib"), help="%(default)s")
    root = parser.parse_args(arguments).root
    print(LICENCES)
    try:
        download(root)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"The data is complete and verified: {root}")


if __name__ == "__main__":
    main()
