"""Opens a page in headless Chromium: its DOM, its width, what it loads, and its errors.

    python -m tools.page_inspection PAGE.html FOLDER

writes screenshots into FOLDER, for a desk and a phone, light and dark, and the printed page.
Chromium runs without a network. Debian has it in the package `chromium`.
"""

import argparse
import dataclasses
import html
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
"""Programs that are tried, in this order."""

DESK, PHONE = 1280, 390
"""Widths in CSS pixels."""

_SECONDS = 180.0

_BAR = 120
"""Height that a window's own parts take from the page at most."""

_SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)

# A frame has any width, where a window is at least as wide as its title bar.
_FRAME = """<!DOCTYPE html>
<body style="margin: 0"><pre id="seen"></pre>
<script>onmessage = (event) => {{ seen.textContent = JSON.stringify(event.data); }};</script>
<iframe src="{source}" style="border: 0; width: {width}px; height: 900px"></iframe>
"""

_PROBE = """<script>
// Charts take the place of their pictures a moment after the page is loaded.
addEventListener("load", () => setTimeout(() => parent.postMessage({
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
  width: innerWidth,
  scroll_width: document.documentElement.scrollWidth,
  background: getComputedStyle(document.body).backgroundColor,
  images: [...document.images].map((image) => image.naturalWidth),
  resources: performance.getEntriesByType("resource").map((entry) => entry.name),
  charts: document.querySelectorAll("figure svg.marks").length,
  cells: [...document.querySelectorAll("td, th")].map((cell) => cell.textContent),
}, "*"), 500));
</script>"""


@dataclasses.dataclass(frozen=True)
class View:
    """A page as Chromium shows it.

    Attributes:
        is_dark: Whether it was shown to a reader who prefers dark.
        width: Width of the window in CSS pixels.
        scroll_width: Width of what is in it; wider than the window, it has to be scrolled.
        background: Computed colour behind the text.
        images: Width of each image in pixels, 0 where it did not load.
        resources: Addresses that were loaded, those of data aside.
        charts: Number of interactive charts.
        cells: Text of each cell of a table.
        console: What was written to the console, errors included.
    """

    is_dark: bool
    width: int
    scroll_width: int
    background: str
    images: tuple[int, ...]
    resources: tuple[str, ...]
    charts: int
    cells: tuple[str, ...]
    console: tuple[str, ...]


def find_browser() -> str | None:
    """Returns the path of Chromium; None where there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def view(browser: str, page: pathlib.Path, width: int, *, dark: bool) -> View:
    """Opens a page and returns what it is like.

    Args:
        browser: Path of Chromium.
        page: An HTML file, which is not changed.
        width: Width of the window in CSS pixels.
        dark: Whether the reader prefers dark.

    Raises:
        RuntimeError: If Chromium says nothing of the page.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        copy, frame = folder / "page.html", folder / "frame.html"
        before, end, after = page.read_text(encoding="utf-8").rpartition("</body>")
        copy.write_text(f"{before}{_PROBE}{end}{after}", encoding="utf-8")
        frame.write_text(_FRAME.format(source=copy.name, width=width), encoding="utf-8")
        run = _run(browser, folder, [_scheme(dark), "--dump-dom", frame.as_uri()])
    seen = re.search(r'<pre id="seen">(.+?)</pre>', run.stdout, re.DOTALL)
    if seen is None:
        raise RuntimeError(f"{browser} says nothing of {page}: {run.stderr[-2000:]}")
    values = json.loads(html.unescape(seen.group(1)))
    console = tuple(line for line in run.stderr.splitlines() if ":CONSOLE" in line)
    lists = {name: tuple(values[name]) for name in ("images", "resources", "cells")}
    return View(
        is_dark=values["dark"],
        width=values["width"],
        scroll_width=values["scroll_width"],
        background=values["background"],
        charts=values["charts"],
        console=console,
        **lists,
    )


def photograph(
    browser: str, page: pathlib.Path, picture: pathlib.Path, width: int, height: int, *, dark: bool
) -> None:
    """Writes a PNG file of the top of a page.

    Args:
        browser: Path of Chromium.
        page: An HTML file.
        picture: File to write.
        width: Width of the window in CSS pixels.
        height: Its height.
        dark: Whether the reader prefers dark.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        frame = folder / "frame.html"
        source = page.resolve().as_uri()
        frame.write_text(
            f'<!DOCTYPE html><body style="margin: 0"><iframe src="{source}" style="border: 0; '
            f'width: {width}px; height: {height}px"></iframe>',
            encoding="utf-8",
        )
        switches = [
            f"--window-size={width},{height + _BAR}",
            f"--screenshot={picture.resolve()}",
        ]
        _run(browser, folder, [_scheme(dark), *switches, frame.as_uri()])


def print_page(browser: str, page: pathlib.Path, document: pathlib.Path) -> None:
    """Writes a PDF file of a page as it prints."""
    with tempfile.TemporaryDirectory() as name:
        switches = [f"--print-to-pdf={document.resolve()}", "--no-pdf-header-footer"]
        _run(browser, pathlib.Path(name), [*switches, page.resolve().as_uri()])


def _scheme(dark: bool) -> str:
    return f"--blink-settings=preferredColorScheme={0 if dark else 1}"


def _run(
    browser: str, folder: pathlib.Path, arguments: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """Runs Chromium with a profile of its own below `folder`."""
    return subprocess.run(
        [browser, *_SWITCHES, f"--user-data-dir={folder / 'profile'}", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=_SECONDS,
    )


def main(arguments: list[str] | None = None) -> None:
    """Writes the pictures that the arguments ask for."""
    parser = argparse.ArgumentParser(description="Writes pictures of a page.")
    parser.add_argument("page", type=pathlib.Path, help="the HTML file")
    parser.add_argument(
        "folder", type=pathlib.Path, help="the folder of the pictures; made if needed"
    )
    options = parser.parse_args(arguments)
    browser = find_browser()
    if browser is None:
        raise SystemExit(f"None of {', '.join(BROWSERS)} is installed.")
    options.folder.mkdir(parents=True, exist_ok=True)
    for place, width in (("desk", DESK), ("phone", PHONE)):
        for scheme in ("light", "dark"):
            picture = options.folder / f"{options.page.stem}_{place}_{scheme}.png"
            photograph(browser, options.page, picture, width, 2400, dark=scheme == "dark")
    print_page(browser, options.page, options.folder / f"{options.page.stem}.pdf")


if __name__ == "__main__":
    main()
