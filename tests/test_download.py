"""Downloads, from a server on this machine: whole and as pinned, or not at all, and one line that says what to do."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from finite.data import cifar10, download
from finite.data.synthetic import DataError

CONTENT = bytes(range(256)) * 20_000  # more than one chunk
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked += 1
        super().do_GET()

    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        outputfile.write(source.read(self.server.most))


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.tar.gz").write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "served")) as running:
        running.most, running.asked = -1, 0
        running.url = f"http://127.0.0.1:{running.server_port}/a.tar.gz"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_the_file_arrives_whole_and_under_its_name(server, tmp_path):
    path = download.fetch(server.url, SHA256, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "a.tar.gz"
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["a.tar.gz"]


def test_a_file_that_is_there_is_checked_and_not_fetched_again(server, tmp_path):
    download.fetch(server.url, SHA256, tmp_path)
    assert download.fetch(server.url, SHA256, tmp_path) == tmp_path / "a.tar.gz"
    assert server.asked == 1


def test_another_file_of_that_name_is_refused_and_left_alone(server, tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"something of the user's")
    with pytest.raises(DataError, match=r"a\.tar\.gz: it has SHA-256 [0-9a-f]{64}, wanted .* remove it"):
        download.fetch(server.url, SHA256, tmp_path)
    assert (tmp_path / "a.tar.gz").read_bytes() == b"something of the user's"
    assert server.asked == 0


@pytest.mark.parametrize(("most", "sha256"), [(-1, "0" * 64), (len(CONTENT) // 2, SHA256)])
def test_other_content_or_half_of_it_is_not_kept(most, sha256, server, tmp_path):
    server.most = most
    with pytest.raises(DataError, match=r"a\.tar\.gz: what arrived has SHA-256 [0-9a-f]{64}, wanted .*; nothing was kept"):
        download.fetch(server.url, sha256, tmp_path / "to")
    assert names(tmp_path / "to") == []


def test_a_missing_page_and_no_server_are_one_line_that_says_where_to_put_the_file(server, tmp_path):
    absent = server.url.replace("a.tar", "b.tar")
    for url, why in ((absent, "HTTP Error 404"), ("http://127.0.0.1:9/b.tar.gz", "Connection refused")):
        with pytest.raises(DataError, match=why) as caught:
            download.fetch(url, SHA256, tmp_path / "to")
        assert str(caught.value).startswith(f"{url}: cannot be fetched (")
        assert str(caught.value).endswith(f"put it at {tmp_path / 'to' / 'b.tar.gz'}")
        assert "\n" not in str(caught.value)
        assert names(tmp_path / "to") == []


def test_without_a_name_server_the_same(tmp_path):
    with pytest.raises(DataError, match=r"cannot be fetched \(.+\); get it where there is a network"):
        download.fetch("http://no-such-host.invalid/a.tar.gz", SHA256, tmp_path)


def test_an_interrupted_download_leaves_nothing(server, tmp_path, monkeypatch):
    """Control-C in the middle."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(download.tqdm, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download.fetch(server.url, SHA256, tmp_path / "to")
    assert names(tmp_path / "to") == []


def test_cifar10_is_fetched_from_its_pinned_address(server, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "URL", server.url)
    with pytest.raises(DataError, match=cifar10.SHA256):
        cifar10.download(tmp_path)
    monkeypatch.setattr(cifar10, "SHA256", SHA256)
    assert cifar10.download(tmp_path).read_bytes() == CONTENT
