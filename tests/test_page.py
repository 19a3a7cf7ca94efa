"""index.html of a folder of results: one page that stands alone, whatever the texts in it; and what it says can be done."""

import base64
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr

from comparisons import files
from comparisons.results import page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"
QT = """
import sys
from PyQt6.QtCore import QUrl
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication
application = QApplication(sys.argv)
view = QWebEngineView()
view.resize(500, 800)
view.loadFinished.connect(lambda _: view.page().toHtml(lambda text: (print(text), application.quit())))
view.load(QUrl(sys.argv[1]))
view.show()
application.exec()
"""
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==")
HOSTILE = "</pre><script>alert('η0')</script> & \"quoted\""
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """What is on it: tags that are left open or closed twice, addresses, tables' cells, and all text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.cells, self.text = [], [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        self.cells += [data] if self.open and self.open[-1] in ("td", "th") else []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results as a command leaves them, with texts that nobody should give."""
    folder = tmp_path_factory.mktemp("page") / "a<b>"
    folder.mkdir()
    files.write_json({"data": HOSTILE, "widths": [8, 16]}, folder / "config.json")
    rows = [{"layer": HOSTILE, "interval": (-0.512345, np.inf), "late": {"ratio": 2.0, "of": None}, "many": list(range(99)),
             "verdict": verdict} for verdict in ("agrees", "agrees", HOSTILE)]  # fmt: skip
    files.write_json({"optima": rows, "shifts": []}, folder / "found.json")
    files.write(xr.Dataset({"loss": ("step", [1.0, 2.0], {"definition": "of a test"})}), folder / "found.nc")
    for name in ("one", "two"):
        (folder / f"{name}.png").write_bytes(PIXEL)
    made = {"jax": "0.0", "device": "<cpu>"}
    page.write(folder, f"superconsistency transfer --data '{HOSTILE}'", f"title {HOSTILE}\nverdict", made)
    return folder


@pytest.fixture(scope="module")
def shown(folder):
    return Page((folder / page.NAME).read_text(encoding="utf-8"))


def test_it_needs_nothing_else(shown, folder):
    """Every address is a picture that it holds, and no style or script asks for more."""
    assert [base64.b64decode(address.removeprefix("data:image/png;base64,")) for address in shown.addresses] == [PIXEL] * 2
    assert not {"script", "link", "iframe", "object"} & set(shown.tags)
    assert not re.search(r"@import|url\(|https?:", (folder / page.NAME).read_text(encoding="utf-8"))


def test_texts_are_escaped(shown):
    """Title, report, verdicts and what they are of, a cell per layer and one of a verdict, command, options."""
    assert shown.text.count(HOSTILE) == 12


def test_numbers_stand_in_tables(shown):
    cells = ["layer", "interval", "late.ratio", "late.of", "many", "verdict",
             HOSTILE, "[-0.5123, –]", "2", "–", "99 values", "agrees"]  # fmt: skip
    assert shown.cells[:12] == cells
    assert shown.cells[-4:] == ["data", HOSTILE, "widths", "[8, 16]"]
    assert f"found: optima\nagrees: {HOSTILE}, {HOSTILE}" in shown.text


def test_a_verdict_says_of_what_it_is():
    """Its record's labels, in their order; of many, or of some without, how many."""
    records = [{"observable": "loss", "rank": None, "verdict": "grows"}, {"observable": "ntk", "rank": 2, "verdict": "falls"},
               {"parametrization": "ntp", "observable": "ntk", "rank": 1, "verdict": "grows"}]  # fmt: skip
    (told,) = page._verdicts({"growth": records, "empty": []})
    assert told == "<p>growth</p>\n<ul><li>grows: loss, ntp ntk 1</li><li>falls: ntk 2</li></ul>"
    (many,) = page._verdicts({"growth": records[:1] * 31})
    assert "<li>grows: 31</li>" in many
    (nameless,) = page._verdicts({"growth": [{"exponent": 1.0, "verdict": "agrees"}]})
    assert "<li>agrees: 1</li>" in nameless


def test_it_says_how_to_load(shown, folder, monkeypatch, capsys):
    (code,) = re.findall(r"import xarray.*", shown.text, re.DOTALL)
    monkeypatch.chdir(folder)
    exec(code, {})
    assert "loss" in capsys.readouterr().out
    (folder / "found.nc").rename(folder / "away")
    (code,) = re.findall(r"import json.*", Page(page._page(folder, "", "", {})).text, re.DOTALL)
    exec(code, {})
    (folder / "away").rename(folder / "found.nc")
    assert "agrees" in capsys.readouterr().out


def test_a_browser_shows_it_without_the_network(folder, tmp_path):
    """In a window as narrow as a telephone's nothing but tables and what a command prints is wider than it."""
    probe = tmp_path / "probe.html"
    told = "document.title = document.documentElement.scrollWidth + ' ' + [...document.images].map(i => i.naturalWidth)"
    text = (folder / page.NAME).read_text(encoding="utf-8")
    probe.write_text(text.replace("</body>", f"<script>onload = () => {{ {told} }}</script></body>"), encoding="utf-8")
    shown = rendered(probe, tmp_path / "profile")
    (width, pictures) = re.search("<title>(.*)</title>", shown)[1].split()
    assert int(width) <= 500
    assert pictures == "1,1"
    assert "&lt;script&gt;alert" in shown


def rendered(path, profile):
    """The page as a browser without a window has it after loading: chromium, or Qt's, which a package index has."""
    if BROWSER:
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", OFFLINE, f"--user-data-dir={profile}",
                   "--window-size=500,800", "--dump-dom", path.as_uri()]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    pytest.importorskip("PyQt6.QtWebEngineWidgets", reason="neither chromium nor PyQt6-WebEngine", exc_type=ImportError)
    flags = {"QT_QPA_PLATFORM": "offscreen", "QTWEBENGINE_DISABLE_SANDBOX": "1",
             "QTWEBENGINE_CHROMIUM_FLAGS": f'--disable-gpu "{OFFLINE}"'}  # fmt: skip
    command = [sys.executable, "-c", QT, path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | flags)
    assert done.returncode == 0, done.stderr
    return done.stdout
