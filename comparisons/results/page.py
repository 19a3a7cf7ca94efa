"""index.html in the folder of a run: what was found, as one page that stands alone.

It needs no network and no other file: pictures are within it, and all text is escaped.
"""

import base64
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from comparisons import files

NAME = "index.html"
MOST, LONG = 8, 30  # numbers in a cell of a table; names behind a verdict, lines of a table that is not folded
LOAD = {  # how a file of results is read, by its ending
    ".nc": """import xarray as xr

run = xr.open_dataset("{name}", engine="h5netcdf")
print(run)  # every variable has long_name, units and definition: run["{variable}"].attrs""",
    ".json": """import json
from pathlib import Path

found = json.loads(Path("{name}").read_text(encoding="utf-8"))
print(found)""",
}
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin-top: 2.2rem }
pre, .wide { overflow-x: auto }
pre { font-size: .8rem; line-height: 1.35; padding: .8rem; background: #8881; border-radius: 4px }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .15rem .7rem .15rem 0; border-bottom: 1px solid #8884; vertical-align: top }
.wide th { white-space: nowrap } img { max-width: 100%; background: white } figure { margin: 1rem 0 }
figcaption, summary { color: #777; font-size: .85rem } summary { cursor: pointer } .command { white-space: pre-wrap }
@media print { body { max-width: none; font-size: 10pt } pre { white-space: pre-wrap } figure, tr { break-inside: avoid } }
"""


def write(folder: Path, command: str, report: str, provenance: Mapping[str, str]) -> None:
    """The page of the results that are there.  Raises files.Unwritten.

    command       what makes them, "" where it is not known
    report        what the command prints
    """
    path = folder / NAME
    with files.writing(path):
        files.replace(path, _page(folder, command, report, provenance).encode())


def _page(folder, command, report, provenance):
    read = {path.name: files.read_json(path) for path in sorted(folder.glob("*.json"))}
    config = read.pop("config.json", {})
    records = {name: value for file, value in read.items() for name, value in _named(Path(file).stem, value)}
    title = report.strip().partition("\n")[0]
    parts = [
        ("", [f"<p>{escape(title)}</p>"]),
        ("What was found", [f"<pre>{escape(report)}</pre>"]),
        ("Verdicts", list(_verdicts(records))),
        ("Pictures", [_picture(path) for path in sorted(folder.glob("*.png"))]),
        ("All numbers", [_folded(f"{name} ({len(rows)})", _table(rows), len(rows)) for name, rows in records.items()]),
        ("Command", [f'<pre class="command">{escape(command)}</pre>'] if command else []),
        ("Versions", [_columns(provenance)]),
        ("Configuration", [_folded("options, and a digest of the data", _columns(config), len(config))] if config else []),
        ("How to load", [_loading(folder, read)]),
    ]
    body = "\n".join(f"<h2>{head}</h2>\n" * bool(head) + "\n".join(held) for head, held in parts if held)
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(folder.name)}</title>\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style></head>\n'
            f"<body><h1>{escape(folder.name)}</h1>\n{body}\n</body></html>\n")  # fmt: skip


def _named(name, value) -> Iterator[tuple[str, list]]:
    """The lists of records in a file of results: one, or several by their names."""
    if isinstance(value, Mapping):
        yield from ((f"{name}: {inner}", rows) for inner, rows in value.items() if rows)
    elif value:
        yield name, value


def _verdicts(records) -> Iterator[str]:
    """Of what each was given: by name, or of many how many."""
    for name, rows in records.items():
        given = defaultdict(list)
        for row in rows:
            if "verdict" in row:
                given[str(row["verdict"])].append(" ".join(_labels(row)))
        if given:
            told = (f"<li>{escape(verdict)}: {escape(_listed(those))}</li>"
                    for verdict, those in sorted(given.items(), key=lambda item: -len(item[1])))  # fmt: skip
            yield f"<p>{escape(name)}</p>\n<ul>{''.join(told)}</ul>"


def _labels(record) -> Iterator[str]:
    """What its verdict is of: its words, and of several eigenvalues which."""
    for name, value in record.items():
        if isinstance(value, str) and name != "verdict":
            yield value
        elif name == "rank" and value is not None:
            yield str(value)


def _listed(names):
    return ", ".join(names) if all(names) and len(names) <= LONG else str(len(names))


def _picture(path):
    data = base64.b64encode(path.read_bytes()).decode()
    name = escape(path.stem, quote=True)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{name}"><figcaption>{name}</figcaption></figure>'


def _folded(summary, content, lines):
    return f"<details{' open' * (lines <= LONG)}><summary>{escape(summary)}</summary>\n{content}</details>"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Each record a line."""
    flat = [_flat(row) for row in rows]
    head = list(dict.fromkeys(name for row in flat for name in row))
    lines = [_line("th", head), *(_line("td", [_text(row.get(name)) for name in head]) for row in flat)]
    return f'<div class="wide"><table>\n{"".join(lines)}</table></div>\n'


def _columns(values: Mapping[str, Any]) -> str:
    """Each value a line."""
    return f'<div class="wide"><table>\n{"".join(_line("td", [k, _text(v)]) for k, v in _flat(values).items())}</table></div>\n'


def _flat(record: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """The values of a record, those of a record within it by both names."""
    flat = {}
    for name, value in record.items():
        inner = isinstance(value, Mapping)
        flat |= _flat(value, f"{within}{name}.") if inner else {f"{within}{name}": value}
    return flat


def _line(kind, cells):
    return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>\n"


def _text(value) -> str:
    """A value in few characters: an interval as [low, high], of a long list how long it is."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]" if len(value) <= MOST else f"{len(value)} values"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _loading(folder, read):
    """Python that reads the results, and has been tried."""
    path = next(iter(sorted(folder.glob("*.nc"))), None)
    if path is not None:
        variable = next(name for name in files.read(path).data_vars)
        return f"<pre>{escape(LOAD['.nc'].format(name=path.name, variable=variable))}</pre>"
    return "".join(f"<pre>{escape(LOAD['.json'].format(name=name))}</pre>" for name in list(read)[:1])
