"""The documents are parsed as their readers parse them, and compared with the figures."""

import base64
import dataclasses
import html
import html.parser
import json
import math
import re

import jinja2
import numpy as np
import pytest

from sfm_tf.audit.blessing import decide
from sfm_tf.audit.verdict import AuditVerdict
from sfm_tf.evaluation.metrics import summarise
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.report.collection import accuracy_by_radius
from sfm_tf.report.document import build_report, html_environment, markdown_environment
from sfm_tf.report.glossary import GLOSSARY
from sfm_tf.report.inputs import Audit, Gallery, Perturbation, ReportInputs, RowCommand
from tests import made_up

HOSTILE = "<script>alert('x')</script>|`a`*b*[c](d)&\\\n# e"


def test_values_show_as_they_read_and_are_no_mark_up():
    text = markdown_environment().from_string("- {{ value }}").render(value=HOSTILE)
    shown = text.removeprefix("- ")
    assert html.unescape(shown) == HOSTILE.replace("\n", " ")
    assert not set("<>|*`[]\\\n\r") & set(shown)


def test_words_and_figures_stay_readable():
    template = markdown_environment().from_string("{{ a }} {{ b }}")
    assert template.render(a="class_0 – 50.0% (1.2–3.4)", b=7) == "class_0 – 50.0% (1.2–3.4) 7"


def test_what_a_template_calls_safe_is_left_alone():
    assert markdown_environment().from_string("{{ v | safe }}").render(v="a|b `c`") == "a|b `c`"


def test_values_are_text_in_html():
    text = html_environment().from_string("{{ value }}").render(value=HOSTILE)
    assert html.unescape(text) == HOSTILE
    assert not set("<>") & set(text)


def test_a_script_holds_a_value_and_nothing_in_it_ends_the_script():
    template = html_environment().from_string("<script>{{ value | script }}</script>")
    text = template.render(value=[HOSTILE, "</script>"])
    assert text.count("<") == 2
    assert json.loads(text.removeprefix("<script>").removesuffix("</script>"))[0] == HOSTILE


def test_a_name_that_a_template_misses_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="absent"):
        markdown_environment().from_string("{{ absent }}").render()


EVALUATION = EvaluationConfig(threat_models=("black_box", "white_box"), epsilons=(8.0,))
COMMAND = RowCommand(
    "white_box", "pgd", 8.0, "python -m pipelines.evaluate --attacks=pgd '--jpeg=<b>|`x`'"
)
IMAGES = np.random.default_rng(0).random((2, 4, 4, 3)).astype(np.float32)


RESULTS = made_up.four_images("black_box", "white_box")
MEASURED = summarise(RESULTS)
ACCURACIES = made_up.OF_FOUR


def report_inputs() -> ReportInputs:
    class_counts = {HOSTILE: 2, "dog": 2}
    split = {
        "count": 7,
        "exact_duplicates": 0,
        "mean": [0.5],
        "std": [0.25],
        "class_counts": {HOSTILE: 4, "dog": 3},
    }
    epoch = {"stage": "alternation", "training": {"mask_loss": 1.0}, "validation": {"x": 0.5}}
    return ReportInputs(
        experiment=HOSTILE,
        dataset="cifar10",
        statistics={"test": split},
        class_counts=class_counts,
        evaluation=EVALUATION,
        metrics=MEASURED,
        accuracy_by_radius=accuracy_by_radius(RESULTS),
        blessing=decide(MEASURED, EVALUATION),
        history={"defence": [epoch]},
        manifests=[made_up.manifest("evaluate", {"evaluation": {"iterations": 30}})],
        gallery=Gallery(IMAGES, IMAGES[..., :1], IMAGES, IMAGES),
        perturbations=[Perturbation("white_box", "pgd", 8.0, IMAGES, IMAGES)],
        commands=[COMMAND],
    )


def plain_inputs(**changes) -> ReportInputs:
    """Returns inputs of a report with fewer pictures, which take most of its time."""
    plain = {"gallery": None, "perturbations": (), "accuracy_by_radius": (), "history": {}}
    return dataclasses.replace(report_inputs(), **{**plain, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    build_report(report_inputs(), folder)
    return folder


class Page(html.parser.HTMLParser):
    """Collects what the tests look at."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables[values["aria-label"]] = []
        elif tag == "tr":
            self._rows().append([])
        elif tag in ("td", "th"):
            self._rows()[-1].append("")
        elif tag not in self.VOID and tag != "span":
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        inner = next((tag for tag in reversed(self.open) if tag != "span"), None)
        if inner in ("td", "th"):
            self._rows()[-1][-1] += data
        elif inner in self.texts:
            self.texts[inner][-1] += data

    def _rows(self):
        return list(self.tables.values())[-1]


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text("utf-8"))


def test_html_is_well_formed_and_stands_alone(page):
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert not names & {"link", "iframe", "object", "embed", "base", "form"}
    for tag, values in page.tags:
        assert values.get("href", "#").startswith("#")
        assert "srcset" not in values
        assert not [name for name in values if name.startswith("on")]
        if "src" in values:
            assert tag == "img"
            assert values["src"].startswith("data:image/svg+xml;base64,")
    assert "url(" not in "".join(page.texts["style"])
    assert "@import" not in "".join(page.texts["style"])


def test_every_chart_of_the_page_is_the_one_that_is_drawn(page, folder):
    names = [
        values["name"] for values in json.loads((folder / "report.json").read_text())["figures"]
    ]
    pictures = [
        base64.b64decode(values["src"].partition(",")[2]).decode()
        for tag, values in page.tags
        if tag == "img"
    ]
    assert pictures == [(folder / "figures" / f"{name}.svg").read_text("utf-8") for name in names]
    charts = [json.loads(text) for text in page.texts["script"] if text.startswith("{")]
    assert len(charts) == len(names) - 2  # Images are not interactive.
    assert charts[0]["description"].startswith("Accuracy against the radius")


def test_html_suits_phones_paper_and_both_colour_schemes(page):
    metas = [values for tag, values in page.tags if tag == "meta"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    style = "".join(page.texts["style"])
    assert "@media (prefers-color-scheme: dark)" in style
    assert "@media print" in style
    assert ("html", {"lang": "en"}) in page.tags


def test_contents_lead_to_every_section(page):
    first, *targets = [v["href"].removeprefix("#") for tag, v in page.tags if tag == "a"]
    headings = [values for tag, values in page.tags if tag == "h2"]
    assert targets == [values["id"] for values in headings if "id" in values]
    assert len(set(targets)) == len(targets) > 5
    assert first == "audit"
    assert page.texts["a"][1:] == page.texts["h2"][-len(targets) :]


def test_headings_are_in_order_and_heads_of_tables_say_of_what(page):
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    assert {values["scope"] for tag, values in page.tags if tag == "th"} == {"row", "col"}


def test_a_status_is_told_by_a_word_and_not_by_colour_alone(page):
    marked = [values for tag, values in page.tags if values.get("class") == "status not-run"]
    cells = [cell for rows in page.tables.values() for row in rows for cell in row]
    assert len(marked) == sum(cell.startswith("not run") for cell in cells) > 0


def test_every_image_has_an_alternative_text(page):
    images = [values for tag, values in page.tags if tag == "img"]
    # The first screen, two threat models, gallery, perturbation, radii and training.
    assert len(images) == 7
    assert all(len(values["alt"]) > 40 for values in images)


def test_html_tables_hold_the_figures(page):
    title = "White box: accuracy and 95% interval"
    head, undefended, defended = page.tables[title]
    assert head == ["Defence", "clean", "FGSM 8/255", "PGD 8/255", "worst case 8/255"]
    assert undefended == ["no defence", ACCURACIES[3], *["not run"] * 3]
    assert defended == [
        "SFM-Defence",
        ACCURACIES[3],
        ACCURACIES[1],
        ACCURACIES[0],
        f"{ACCURACIES[0]} PGD",
    ]
    black_box = page.tables["Black box: accuracy and 95% interval"][2]
    assert black_box[2:] == [ACCURACIES[4], ACCURACIES[2], f"{ACCURACIES[2]} PGD"]


def test_what_was_not_run_says_so(page):
    _, *rows = page.tables["Gray box: accuracy and 95% interval"]
    assert [row[2:] for row in rows] == [["not run"] * 3] * 2
    assert "The gray box was not run." in page.texts["p"]


def test_the_answer_comes_first_with_the_thresholds_beside_the_chart(page):
    assert page.texts["strong"] == ["NOT BLESSED"]
    tags = [tag for tag, _ in page.tags]
    assert tags.index("strong") < tags.index("figure") < tags.index("table") < tags.index("nav")
    assert list(page.tables)[0] == "Thresholds"
    assert [row[:2] for row in page.tables["Thresholds"][1:]] == [
        ["Clean accuracy", "pass"],
        ["Clean accuracy lost", "pass"],
        ["Worst-case accuracy", "fail"],
        ["White box", "pass"],
    ]


def test_checks_that_passed_are_folded_and_the_others_open(tmp_path):
    findings = (made_up.finding("pass"), made_up.finding("warn"))
    audit = Audit(findings, AuditVerdict("credible", "All is well."))
    build_report(plain_inputs(audit=audit, experiment="cifar10"), tmp_path)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert page.texts["h1"] == ["SFM-Defence on cifar10"]  # The experiment's name says no more.
    assert page.texts["summary"] == ["Checks that passed: 1"]
    assert "Credible: 1 passed · 1 warning." in page.texts["p"]
    assert [row[0] for row in page.tables["Checks that did not pass"]] == ["Check", "Title warn"]
    folded = page.tags.index(("details", {}))
    last_table = max(
        n for n, (_, v) in enumerate(page.tags[:folded]) if "with their reasons" in str(v)
    )
    assert last_table < folded


def test_words_of_the_field_are_explained_at_the_end(page, folder):
    assert page.texts["dt"] == list(GLOSSARY)
    markdown = (folder / "report.md").read_text("utf-8")
    for word, meaning in GLOSSARY.items():
        assert f"- **{word}**: " in markdown
        assert html.unescape(markdown).count(meaning) == 1


def test_commands_are_shown_whole_and_told_to_programs(page, folder):
    head, *rows = page.tables["Commands"]
    assert head == ["Accuracy", "command"]
    assert rows == [["white box, PGD 8/255", COMMAND.command]]
    assert ("span", {"class": "command"}) in page.tags
    tables = markdown_tables((folder / "report.md").read_text("utf-8"))
    assert html.unescape(tables["Commands"][1][1]) == COMMAND.command
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert report["commands"] == [
        {
            "threat_model": "white_box",
            "attack": "pgd",
            "epsilon": 8.0,
            "command": COMMAND.command,
        }
    ]


def test_hostile_names_are_text_in_html(page):
    assert page.texts["h1"] == [f"SFM-Defence on cifar10: {HOSTILE}"]
    labels = [row[0] for row in page.tables["Test images of each class"]]
    assert labels == ["Class", HOSTILE, "dog"]


def markdown_tables(text: str) -> dict[str, list[list[str]]]:
    blocks = [block.strip().splitlines() for block in re.split(r"\n\s*\n", text)]
    titles = [blocks[place - 1][-1] for place in range(len(blocks))]
    tables = {}
    for title, lines in zip(titles, blocks, strict=True):
        if lines and all(line.startswith("|") for line in lines):
            rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
            assert set("".join(rows[1])) <= {"-", ":"}
            assert {len(row) for row in rows} == {len(rows[0])}
            tables[title] = [rows[0], *rows[2:]]
    return tables


def test_markdown_tables_hold_the_figures(folder):
    tables = markdown_tables((folder / "report.md").read_text("utf-8"))
    assert tables["White box: accuracy and 95% interval"][2] == [
        "SFM-Defence",
        ACCURACIES[3],
        ACCURACIES[1],
        ACCURACIES[0],
        f"{ACCURACIES[0]}, PGD",
    ]
    assert tables["Gray box: accuracy and 95% interval"][2][2:] == ["not run"] * 3
    assert [len(row) for row in tables["Test images of each class"]] == [3, 3, 3]
    assert len(tables) == 15


def test_hostile_names_are_text_in_markdown(folder):
    text = (folder / "report.md").read_text("utf-8")
    assert "<script" not in text
    assert "`a`" not in text
    assert "[c](d)" not in text
    assert "\n# e" not in text
    assert html.unescape(text).count(HOSTILE.replace("\n", " ")) == 2


def test_markdown_shows_figures_that_exist(folder):
    links = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", (folder / "report.md").read_text("utf-8"))
    assert len(links) == 7
    assert all((folder / link).read_bytes().startswith(b"\x89PNG") for link in links)


def refuse_constant(name: str) -> float:
    raise AssertionError(f"{name} is not JSON")


def test_json_holds_the_figures_and_no_nan(folder):
    text = (folder / "report.json").read_text("utf-8")
    report = json.loads(text, parse_constant=refuse_constant)
    assert report["schema_version"] == 1
    assert report["metrics"] == json.loads(json.dumps(dataclasses.asdict(MEASURED)))
    assert report["verdict"]["blessed"] is False
    assert report["verdict"]["reasons"]
    assert report["class_counts"] == {HOSTILE: 2, "dog": 2}
    assert {name: value["run"] for name, value in report["threat_models"].items()} == {
        "black_box": True,
        "gray_box": False,
        "white_box": True,
    }
    assert report["stages"][0]["package_versions"] == {"keras": "3.15.1"}
    assert len(report["paper"]) == 97
    assert report["costs"] == report["paired"] == []
    absent = ("detection", "audit", "probes", "breakdown", "failures", "masks", "tuning")
    assert {name: report[name] for name in absent} == dict.fromkeys(absent)
    assert report["figures"]
    for figure in report["figures"]:
        assert (folder / figure["png"]).read_bytes().startswith(b"\x89PNG")
        assert (folder / figure["svg"]).read_bytes().startswith(b"<svg")


def test_a_nan_is_refused_rather_than_written(tmp_path):
    inputs = plain_inputs()
    inputs.statistics["test"]["std"] = [math.nan]
    with pytest.raises(ValueError, match="not JSON compliant"):
        build_report(inputs, tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_the_same_inputs_give_the_same_files(folder, tmp_path):
    build_report(report_inputs(), tmp_path)
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(names) == 17
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
