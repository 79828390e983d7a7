"""The literals are copied from the tables of Yu et al. 2022 a second time, cell by cell."""

import pytest

from sfm_tf.defences.catalogue import DEFENCES
from sfm_tf.evaluation.metrics import CleanAccuracy, Metrics, MinimumNorm
from sfm_tf.evaluation.runner import Cost
from sfm_tf.report.paper import CAVEAT, PAPER_COSTS, comparison_tables, cost_table, paper_results
from tests import made_up


@pytest.mark.parametrize(
    ("dataset", "table", "row", "threat_model", "attack", "epsilon", "accuracy"),
    [
        ("cifar10", 1, "Vanilla", "black_box", "clean", 0, 0.871),
        ("cifar10", 1, "FS", "black_box", "diverse", 16, 0.135),
        ("cifar10", 1, "Ours", "black_box", "pgd", 8, 0.646),
        ("cifar10", 1, "Ours", "black_box", "mim", 16, 0.333),
        ("cifar10", 2, "Vanilla", "gray_box", "fgsm", 16, 0.118),
        ("cifar10", 2, "FS", "gray_box", "pgd", 16, 0.069),
        ("cifar10", 2, "Ours", "gray_box", "cw", 0, 0.849),
        ("cifar10", 7, "CIFAR10", "white_box", "fgsm", 8, 0.515),
        ("cifar10", 7, "CIFAR10", "white_box", "pgd", 16, 0.047),
        ("cifar10", 1, "TVM", "black_box", "pgd", 8, 0.505),
        ("cifar10", 1, "Quilt", "black_box", "mim", 8, 0.536),
        ("cifar10", 2, "PixelDefend", "gray_box", "cw", 0, 0.102),
        ("cifar10", 2, "Sensitivity", "gray_box", "pgd", 8, 0.438),
        ("svhn_cropped", 3, "PixelDefend", "black_box", "mim", 8, 0.306),
        ("svhn_cropped", 4, "TVM", "gray_box", "fgsm", 8, 0.926),
        ("svhn_cropped", 4, "Quilt", "gray_box", "pgd", 16, 0.044),
        ("tiny_imagenet", 5, "Sensitivity", "black_box", "pgd", 16, 0.328),
        ("tiny_imagenet", 6, "TVM", "gray_box", "cw", 0, 0.123),
        ("svhn_cropped", 3, "Ours", "black_box", "mim", 8, 0.671),
        ("svhn_cropped", 4, "Ours", "gray_box", "fgsm", 16, 0.507),
        ("svhn_cropped", 7, "SVHN", "white_box", "cw", 0, 0.317),
        ("tiny_imagenet", 5, "FS", "black_box", "clean", 0, 0.666),
        ("tiny_imagenet", 6, "Ours", "gray_box", "pgd", 8, 0.253),
        ("tiny_imagenet", 7, "Tiny-ImageNet", "white_box", "pgd", 16, 0.001),
    ],
)
def test_cells_are_as_printed(dataset, table, row, threat_model, attack, epsilon, accuracy):
    matching = [
        result
        for result in paper_results(dataset)
        if (result.table, result.row, result.threat_model, result.attack, result.epsilon)
        == (table, row, threat_model, attack, epsilon)
    ]
    assert [result.accuracy for result in matching] == [accuracy]


@pytest.mark.parametrize(
    ("dataset", "rows"), [("cifar10", 7), ("svhn_cropped", 7), ("tiny_imagenet", 6)]
)
def test_every_dataset_has_all_rows_of_two_tables_and_one_of_table_7(dataset, rows):
    results = list(paper_results(dataset))
    assert len(results) == rows * 7 + rows * 6 + 6
    assert {result.dataset for result in results} == {dataset}
    assert all(0.0 <= result.accuracy < 1.0 for result in results)


@pytest.mark.parametrize("dataset", ["digits", "image_folder"])
def test_other_datasets_have_no_figures(dataset):
    assert list(paper_results(dataset)) == []


def test_each_row_is_of_a_defence_that_can_be_evaluated():
    results = [
        r for name in ("cifar10", "svhn_cropped", "tiny_imagenet") for r in paper_results(name)
    ]
    found = {result.row: result.defence for result in results}
    assert found.pop("Vanilla") == "undefended"
    assert {found[row] for row in ("Ours", "CIFAR10", "SVHN", "Tiny-ImageNet")} == {"sfm"}
    assert set(found.values()) < set(DEFENCES)


def test_costs_are_those_of_table_8():
    printed = {cost.row: (cost.training_minutes, cost.defending_minutes) for cost in PAPER_COSTS}
    assert printed == {
        "None": (78.9, 0.3),
        "FS": (78.9, 0.3),
        "PixelDefend": (208.3, 0.8),
        "Sensitivity": (78.9, 9.6),
        "Ours": (231.7, 0.8),
    }


def test_the_caveat_says_that_networks_and_training_differ():
    assert "networks, training and test images differ" in CAVEAT


_HALF, _QUARTER = made_up.accuracy(50, 100), made_up.accuracy(25, 100)
_NOTHING = Metrics(subject="sfm", clean=())


def _tables(metrics, dataset="cifar10"):
    return {table.title[:7]: table for table in comparison_tables(dataset, metrics)}


@pytest.mark.parametrize("dataset", ["digits", "image_folder"])
def test_a_dataset_that_the_paper_does_not_use_has_no_table(dataset):
    assert list(comparison_tables(dataset, _NOTHING)) == []


def test_each_table_of_the_paper_has_its_rows_and_columns():
    tables = _tables(_NOTHING)
    assert list(tables) == ["Table 1", "Table 2", "Table 7"]
    assert tables["Table 1"].columns[1:4] == ("clean", "PGD 8/255", "PGD 16/255")
    assert tables["Table 2"].columns[-1] == "CW"
    rows = [row.label for row in tables["Table 1"].rows]
    assert rows == ["Vanilla", "FS", "TVM", "Quilt", "PixelDefend", "Sensitivity", "Ours"]
    assert str(tables["Table 7"].rows[0].cells[0]) == "not run, paper 86.2%"


def test_measured_figures_stand_beside_the_printed_ones_with_their_difference():
    smallest = {"attack_success": 0.5, "median_linf": 0.1, "median_l2": 0.1}
    metrics = Metrics(
        subject="sfm",
        clean=(CleanAccuracy(defence="sfm", **_HALF),),
        under_attack=(
            made_up.attacked("white_box", "pgd", 8.0, _QUARTER),
            made_up.attacked("gray_box", "fgsm", 16.0, _HALF, "tvm"),
        ),
        minimum_norm=(
            MinimumNorm(
                defence="sfm", threat_model="gray_box", attack="cw", **smallest, **_QUARTER
            ),
        ),
    )
    tables = _tables(metrics)
    (white_box,) = made_up.cells(tables["Table 7"]).values()
    assert white_box == [
        "50.0% (40.4–59.6), paper 86.2%, difference -36.2",
        "not run, paper 51.5%",
        "not run, paper 37.4%",
        "25.0% (17.5–34.3), paper 11.0%, difference +14.0",
        "not run, paper 4.7%",
        "not run, paper 1.6%",
    ]
    gray = made_up.cells(tables["Table 2"])
    assert gray["TVM"][2] == "50.0% (40.4–59.6), paper 13.3%, difference +36.7"
    assert gray["Ours"][-1] == "25.0% (17.5–34.3), paper 84.9%, difference -59.9"


_COSTS = [
    Cost(defence=name, images=10, seconds_per_1000_images=2 * ratio, relative_to_undefended=ratio)
    for name, ratio in (("undefended", 1.0), ("sfm", 2.5), ("jpeg", 1.1))
]


def test_costs_are_shown_as_ratios_beside_those_of_table_8():
    table = cost_table("cifar10", _COSTS, {"undefended": 100.0, "sfm": 250.0})
    bare, sfm, jpeg = made_up.cells(table).values()
    assert bare == ["2", "1.00, paper 1.00", "100", "1.00, paper 1.00"]
    # 0.8 / 0.3 and 231.7 / 78.9 minutes.
    assert sfm == ["5", "2.50, paper 2.67", "250", "2.50, paper 2.94"]
    assert jpeg == ["2.2", "1.10", "not run", "not run"]


def test_costs_on_other_datasets_stand_without_the_papers():
    table = cost_table("digits", _COSTS, {})
    assert list(map(str, table.rows[1].cells)) == ["5", "2.50", "not run", "not run"]


def test_nothing_measured_gives_no_cost_table():
    assert cost_table("cifar10", [], {}) is None
