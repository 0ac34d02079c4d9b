"""Fetching the upstream files, against a small server on this machine."""

import errno
import fcntl
import functools
import hashlib
import http.server
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from tenacity import wait_none

from rolib.data import download as module
from rolib.data.download import FILES, UpstreamFile, checksum, data_root, download, verify
from rolib.data.tasks import SAMPLE, task_source
from rolib.measures import TASKS

CONTENT = {"/o/r/c/a.txt": b"hello\n", "/o/r/c/sub/b.bin": bytes(range(256)) * 2048}  # 8 chunks
HELLO_BLOB = "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object of "hello\n"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT. The server's `answers` list holds the faults of the next requests."""

    def do_GET(self):
        asked = self.headers.get("Range", "bytes=0-")
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        self.server.requests.append(f"{self.path} {start}" if start else self.path)
        answer = self.server.answers.pop(0) if self.server.answers else "good"
        content = CONTENT.get(self.path)
        if content is None:
            return self.send_error(404)
        if answer == "busy":
            return self.send_error(503)
        if answer == "no ranges":
            start = 0
        elif start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        content = content[start:]
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if answer == "damaged":
            content = content[:-1] + b"!"
        self.wfile.write(content[: len(content) // 2] if answer == "truncated" else content)

    def log_message(self, *arguments):
        pass


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(module.transfer.retry, "wait", wait_none())


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.answers, server.requests = [], []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def small_table(request, monkeypatch):
    """Two small files in place of the real table, but for the tests marked real_table."""
    if "real_table" in request.fixturenames:
        return
    big = hashlib.sha256(CONTENT["/o/r/c/sub/b.bin"]).hexdigest()
    files = (
        UpstreamFile("one/a.txt", "o/r/c/a.txt", "git-blob", HELLO_BLOB),
        UpstreamFile("two/sub/b.bin", "o/r/c/sub/b.bin", "sha256", big),
    )
    monkeypatch.setattr(module, "FILES", files)


@pytest.fixture
def real_table():
    return FILES


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_fetches_all_files_once(server, tmp_path):
    download(tmp_path, base_url=server.url)
    assert files_below(tmp_path) == ["one/a.txt", "two/sub/b.bin"]
    assert (tmp_path / "one/a.txt").read_bytes() == CONTENT["/o/r/c/a.txt"]
    assert (tmp_path / "two/sub/b.bin").read_bytes() == CONTENT["/o/r/c/sub/b.bin"]
    assert server.requests == list(CONTENT)
    download(tmp_path, base_url=server.url)
    assert server.requests == list(CONTENT)  # verified files are not fetched again


A, B = CONTENT
HALF, WHOLE = len(CONTENT[B]) // 2, len(CONTENT[B])


def complete(folder):
    whole = {path: (folder / path).read_bytes() for path in files_below(folder)}
    return whole == {"one/a.txt": CONTENT[A], "two/sub/b.bin": CONTENT[B]}


def test_damaged_transfer_is_fetched_once_more_then_refused(server, tmp_path):
    server.answers = ["damaged", "damaged"]
    with pytest.raises(
        ValueError, match=r"http.*/o/r/c/a\.txt arrives damaged.*run `python -m rolib\.data\.down"
    ):
        download(tmp_path, base_url=server.url)
    assert files_below(tmp_path) == []
    server.answers = ["damaged"]
    download(tmp_path, base_url=server.url)
    assert complete(tmp_path) and server.requests == [A, A, A, A, B]


def test_broken_transfer_goes_on_where_it_stopped(server, tmp_path):
    server.answers = ["good", "truncated", "busy", "truncated"]
    download(tmp_path, base_url=server.url)
    rest = [f"{B} {HALF}", f"{B} {HALF}", f"{B} {HALF + HALF // 2}"]
    assert complete(tmp_path) and server.requests == [A, B, *rest]


def test_a_transfer_that_breaks_too_often_is_continued_by_the_next_run(server, tmp_path):
    server.answers = ["good", "truncated", *["busy"] * 5]
    with pytest.raises(
        OSError,
        match=r"two/sub/b\.bin: the transfer failed \(.*run `python -m rolib\.data\.download`: it "
        "goes on from there",
    ):
        download(tmp_path, base_url=server.url)
    assert files_below(tmp_path) == ["one/a.txt", "two/sub/b.bin.part"]
    assert (tmp_path / "two/sub/b.bin.part").stat().st_size == HALF
    download(tmp_path, base_url=server.url)
    assert complete(tmp_path) and server.requests[-1] == f"{B} {HALF}"


def test_a_server_without_ranges_sends_all_of_it_again(server, tmp_path):
    server.answers = ["good", "truncated", "no ranges"]
    download(tmp_path, base_url=server.url)
    assert complete(tmp_path) and server.requests == [A, B, f"{B} {HALF}"]


@pytest.mark.parametrize("size", [20, WHOLE, WHOLE + 1])
def test_a_part_of_something_else_is_dropped(server, tmp_path, size):
    (tmp_path / "two/sub").mkdir(parents=True)
    (tmp_path / "two/sub/b.bin.part").write_bytes(b"?" * size)
    download(tmp_path, base_url=server.url)
    assert complete(tmp_path) and server.requests == [A, f"{B} {size}", B]


def test_a_full_disk_a_folder_of_another_and_a_second_download(server, tmp_path, monkeypatch):
    """Each is one line with its remedy, and nothing is tried again."""

    def refuse(number, *arguments, **options):
        raise OSError(number, os.strerror(number))

    full = functools.partial(refuse, errno.ENOSPC)
    monkeypatch.setattr(module.pooch.HTTPDownloader, "__call__", full)
    with pytest.raises(OSError, match=r"one/a\.txt.*No space left.*: free some space, or.*--root"):
        download(tmp_path, base_url=server.url)
    monkeypatch.undo()
    monkeypatch.setattr(module, "FILES", module.FILES[:1])
    monkeypatch.setattr(Path, "mkdir", functools.partial(refuse, errno.EACCES))
    with pytest.raises(OSError, match=r"a/x: .*Permission denied.*: allow writing there, or"):
        monkeypatch.setattr(module, "FILES", (UpstreamFile("a/x", "a", "sha256", "0"),))
        download(tmp_path, base_url=server.url)
    monkeypatch.undo()
    monkeypatch.setattr(module, "FILES", (UpstreamFile("a/x", "a", "sha256", "0"),))
    (tmp_path / "a").mkdir()
    with open(tmp_path / "a/x.part", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="a/x: .*another process fetches this file, wait for it"):
            download(tmp_path, base_url=server.url)
    assert server.requests == []


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupt(root):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "download", interrupt)
    with pytest.raises(SystemExit) as stop:
        module.main(["--root", str(tmp_path)])
    assert stop.value.code == 130
    message = f"stopped: `python -m rolib.data.download --root {tmp_path}` goes on from here"
    assert capsys.readouterr().err.strip() == message


def test_damaged_file_on_disk_is_refused_not_replaced(server, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a.txt").write_bytes(b"hullo\n")
    with pytest.raises(
        ValueError, match=r"one/a\.txt is damaged: its git-blob checksum.*: delete it .*and run"
    ):
        download(tmp_path, base_url=server.url)
    assert (tmp_path / "one/a.txt").read_bytes() == b"hullo\n" and server.requests == []


def test_missing_upstream_file_and_no_server(server, tmp_path, monkeypatch):
    monkeypatch.setattr(
        module, "FILES", (UpstreamFile("one/x", "o/r/c/x", "git-blob", HELLO_BLOB),)
    )
    with pytest.raises(OSError, match="one/x: the transfer failed .*404"):
        download(tmp_path, base_url=server.url)
    with pytest.raises(OSError, match="one/x: the transfer failed"):
        download(tmp_path, base_url="http://127.0.0.1:9")
    assert server.requests == ["/o/r/c/x"]  # what is not there is not asked for again


def test_checksums(tmp_path):
    path = tmp_path / "hello"
    path.write_bytes(b"hello\n")
    assert checksum(path, "git-blob") == HELLO_BLOB
    assert (
        checksum(path, "sha256")
        == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    )
    hello = UpstreamFile("one/a.txt", "o/r/c/a.txt", "git-blob", HELLO_BLOB)
    verify(path, hello)
    path.write_bytes(b"")
    assert checksum(path, "git-blob") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    with pytest.raises(
        ValueError,
        match=f"{path} is damaged: its git-blob checksum is e69de29b.*expected {HELLO_BLOB}",
    ):
        verify(path, hello)


def test_git_blob_of_a_real_file(real_data, tmp_path):
    with zipfile.ZipFile(real_data / "ronec/ronec_v1/ronec/conllup/zips/ronec_iob.zip") as archive:
        path = archive.extract("ronec_iob.conllup", tmp_path)
    assert checksum(path, "git-blob") == "99446eb03ccbc5f4dba1c29789259ff3f458bcb9"


def test_real_files_have_the_checksums_of_the_table(real_data, real_table):
    present = [file for file in real_table if (real_data / file.path).is_file()]
    assert len(present) >= 20
    for file in present:
        verify(real_data / file.path, file)


def test_table(real_table, tmp_path):
    assert len({file.path for file in real_table}) == len(real_table) == 26
    assert {file.path.split("/")[0] for file in real_table} == {
        task.dataset for task in TASKS.values()
    }
    for file in real_table:
        owner, repository, commit, upstream_path = file.url.split("/", 3)
        assert file.path == f"{repository}/{upstream_path}" and owner
        assert len(commit) == 40 and int(commit, 16)
        assert len(file.checksum) == {"sha256": 64, "git-blob": 40}[file.algorithm] and int(
            file.checksum, 16
        )
    # The table holds every file that the readers want in the official layouts.
    for file in real_table:
        (tmp_path / file.path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file.path).touch()
    assert all(task_source(name, tmp_path).note == "" for name in TASKS)


def test_data_root(tmp_path, monkeypatch):
    monkeypatch.setattr(module.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.delenv("ROLIB_DATA", raising=False)
    assert data_root("sample") == SAMPLE
    assert data_root(str(tmp_path)) == tmp_path
    with pytest.raises(
        FileNotFoundError, match=r"data root '.*nowhere' is no folder: set `data` or ROLIB_DATA"
    ):
        data_root(tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError,
        match=r"2 of 2 data files.*one/a\.txt.*run `python -m rolib\.data\.download`",
    ):
        data_root("real")
    for file in module.FILES:
        path = tmp_path / "cache/rolib" / file.path
        path.parent.mkdir(parents=True)
        path.touch()
    assert data_root("real") == tmp_path / "cache/rolib"
    monkeypatch.setenv("ROLIB_DATA", str(tmp_path))
    assert data_root("real") == tmp_path
    monkeypatch.setenv("ROLIB_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(
        FileNotFoundError, match=r"data root '.*nowhere' is no folder: set `data` or ROLIB_DATA"
    ):
        data_root("real")


def test_command(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "download", functools.partial(download, base_url=server.url))
    module.main(["--root", str(tmp_path)])
    assert files_below(tmp_path) == ["one/a.txt", "two/sub/b.bin"]
    output = capsys.readouterr().out
    assert "LaRoSeDa and MOROCO are non-commercial" in output and str(tmp_path) in output
    (tmp_path / "one/a.txt").write_bytes(b"hullo\n")
    with pytest.raises(SystemExit, match=r"^error: .*one/a\.txt is damaged"):
        module.main(["--root", str(tmp_path)])


def test_command_line_help():
    command = [sys.executable, "-m", "rolib.data.download", "--help"]
    result = subprocess.run(
        command, cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    assert result.returncode == 0 and "--root" in result.stdout
