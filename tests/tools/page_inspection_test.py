"""The report and the comparison are opened in headless Chromium, as their readers do."""

import json
import re

import pytest

from tools import page_inspection, sample_report
from tools.page_inspection import DESK, PHONE, photograph, print_page, view

BROWSER = page_inspection.find_browser()

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium here; `apt-get install chromium` brings it"
)

FAULTY = """<!DOCTYPE html>
<html><head><title>t</title></head><body>
<img src="https://example.invalid/figure.png">
<div style="width: 3000px">wide</div>
<table><tr><td>a &lt; b &amp; c</td></tr></table>
<script>console.error("something is wrong")</script>
</body></html>
"""


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    sample_report.main([str(folder)])
    return folder


@pytest.fixture(name="views", scope="module")
def _views(folder):
    """Both pages, on a phone and a desk, light and dark."""
    return {
        (page, width, dark): view(BROWSER, folder / f"{page}.html", width, dark=dark)
        for page in ("report", "compare")
        for width, dark in ((PHONE, False), (DESK, True))
    }


def test_pages_complain_of_nothing_and_load_nothing(views):
    for seen in views.values():
        assert seen.console == ()
        assert seen.resources == ()


def test_pages_name_no_address_to_load_from(folder):
    for page in ("report", "compare"):
        text = (folder / f"{page}.html").read_text("utf-8")
        assert not re.findall(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", text)
        assert not re.findall(r"@import|<link", text)


def test_no_page_is_wider_than_its_window(views):
    for (page, width, _), seen in views.items():
        assert (page, seen.width) == (page, width)
        assert seen.scroll_width <= width, page


def test_readers_who_prefer_dark_get_it(views):
    for (_, _, dark), seen in views.items():
        assert seen.is_dark == dark
        channels = list(map(int, re.findall(r"\d+", seen.background)))
        assert (max(channels) < 64) if dark else (min(channels) > 240)


def test_figures_are_decoded_and_cells_are_there(views, folder):
    report = json.loads((folder / "report.json").read_text("utf-8"))
    for (page, _, _), seen in views.items():
        figures = len(report["figures"]) if page == "report" else 0
        assert len(seen.images) + seen.charts == figures
        assert all(width > 100 for width in seen.images)
        assert not [cell for cell in seen.cells if not cell.strip()]
    cells = views["report", PHONE, False].cells
    # By hand: 38 of 40 images are wrong after the strongest attack.
    assert "5.0% (1.4–16.5) APGD-CE" in cells
    assert views["report", PHONE, False].charts == 7  # All but those that show images.
    assert {"pass must pass", "warn must pass", "fail must pass", "not run"} <= set(cells)


def test_faults_of_a_page_are_seen(tmp_path):
    page = tmp_path / "faulty.html"
    page.write_text(FAULTY, encoding="utf-8")
    seen = view(BROWSER, page, PHONE, dark=False)
    assert any("something is wrong" in line for line in seen.console)
    assert seen.resources == ("https://example.invalid/figure.png",)
    assert seen.images == (0,)
    assert seen.scroll_width >= 3000
    assert seen.cells == ("a < b & c",)


def test_pictures_and_prints_are_written(folder, tmp_path):
    photograph(BROWSER, folder / "compare.html", tmp_path / "p.png", PHONE, 600, dark=True)
    print_page(BROWSER, folder / "compare.html", tmp_path / "p.pdf")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "p.pdf").read_bytes().startswith(b"%PDF")
