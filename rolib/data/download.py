"""Fetch the upstream data files at pinned commits and verify their checksums.

`python -m rolib.data.download [--root DIR]` fills the cache folder, or DIR. upstream.csv lists the
files. Where only the git blob id of a file is known, that is its checksum; else it is SHA-256.
A broken transfer goes on where it stopped.
"""

import argparse
import csv
import errno
import fcntl
import hashlib
import os
import sys
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pooch
import requests
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential

from rolib.data import COMMAND, SAMPLE

LICENCES = "Each data set has its own licence. LaRoSeDa and MOROCO are non-commercial."
TRIES = stop_after_attempt(6)
WAITS = wait_exponential(max=30)  # seconds between two tries: 1, 2, 4, ...
ELSEWHERE = "or name another folder with --root"
REMEDIES = {  # of errors that are not the network's
    errno.ENOSPC: f"free some space, {ELSEWHERE}",
    errno.EACCES: f"allow writing there, {ELSEWHERE}",
    errno.EROFS: f"make the disk writable, {ELSEWHERE}",
    errno.EWOULDBLOCK: "another process fetches this file, wait for it",
}


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


def _may_pass(error: BaseException) -> bool:
    """Whether it helps to try again: a broken transfer, a busy server, a range that is refused."""
    status = getattr(getattr(error, "response", None), "status_code", 503)
    return isinstance(error, requests.RequestException) and (status in (416, 429) or status >= 500)


@retry(retry=retry_if_exception(_may_pass), stop=TRIES, wait=WAITS, reraise=True)
def transfer(url: str, stream: BinaryIO) -> None:
    """Append to a file, open for appending, what it lacks of the content of `url`.

    It is fetched from 0 if the server gives no ranges. Raises requests.RequestException.
    """

    def start_again(response: requests.Response, **_: object) -> None:
        """Empty the file if the answer is not a range of the content."""
        if response.status_code in (200, 416):
            stream.truncate(0)

    # A range of a compressed answer would be of no use.
    headers = {"Range": f"bytes={stream.seek(0, os.SEEK_END)}-", "Accept-Encoding": "identity"}
    options = {"headers": headers, "hooks": {"response": start_again}}
    pooch.HTTPDownloader(progressbar=True, chunk_size=2**16, **options)(url, stream, None)


def fetch(url: str, target: Path, file: UpstreamFile) -> None:
    """Fetch a file under a temporary name, and rename it when its checksum is right.

    A broken transfer leaves the temporary file, and the next one goes on from there. Raises
    ValueError for a wrong checksum, and OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with open(part, "ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for _ in range(2):  # once more if what was there was not the start of this file
            transfer(url, stream)
            if checksum(part, file.algorithm) == file.checksum:
                part.replace(target)
                return
            stream.truncate(0)
        part.unlink()
    raise ValueError(f"{url} arrives damaged, its checksum is wrong: run `{COMMAND}` again later")


def download(root: Path | str, base_url: str = "https://raw.githubusercontent.com") -> None:
    """Fetch the upstream files of all data sets into the folder `root`.

    A file that is already there is verified, not fetched again. Raises ValueError for a damaged
    file and OSError for a failed transfer, a full disk or a folder that cannot be written.
    """
    for file in FILES:
        target = Path(root) / file.path
        try:
            if target.exists():
                verify(target, file)
                continue
            print(file.path, file=sys.stderr)
            fetch(f"{base_url}/{file.url}", target, file)
        except OSError as error:  # the errors of requests are OSErrors
            remedy = REMEDIES.get(error.errno or 0, "check the network")
            problem = f"{file.path}: the transfer failed ({error}): {remedy}"
            raise OSError(f"{problem}, then run `{COMMAND}`: it goes on from there") from error


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
    except KeyboardInterrupt:
        print(f"\nstopped: `{COMMAND} --root {root}` goes on from here", file=sys.stderr)
        sys.exit(130)
    print(f"The data is complete and verified: {root}")


if __name__ == "__main__":
    main()
