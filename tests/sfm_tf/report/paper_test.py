"""The literals are copied from the tables of Yu et al. 2022 a second time, cell by cell."""

import pytest

from sfm_tf.choices import DEFENCES
from sfm_tf.report.paper import CAVEAT, PAPER_COSTS, paper_results


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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
