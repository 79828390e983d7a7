"""The literals are copied from the tables of Yu et al. 2022 a second time, cell by cell."""

import pytest

from sfm_tf.report.paper import CAVEAT, comparison_table, paper_results


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


@pytest.mark.parametrize("dataset", ["cifar10", "svhn_cropped", "tiny_imagenet"])
def test_every_dataset_has_three_rows_in_two_tables_and_one_in_table_7(dataset):
    results = list(paper_results(dataset))
    assert len(results) == 3 * 7 + 3 * 6 + 6
    assert {result.dataset for result in results} == {dataset}
    assert all(0.0 <= result.accuracy < 1.0 for result in results)


@pytest.mark.parametrize("dataset", ["digits", "image_folder"])
def test_other_datasets_have_no_figures_and_no_table(dataset):
    assert list(paper_results(dataset)) == []
    metrics = {"clean": [], "under_attack": [], "worst_case": []}
    assert comparison_table(dataset, metrics) is None


def test_measured_figures_stand_beside_the_printed_ones():
    half = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6}
    quarter = {"accuracy": 0.25, "accuracy_low": 0.2, "accuracy_high": 0.3}
    metrics = {
        "clean": [{"defence": "undefended", **half}, {"defence": "sfm", **half}],
        "under_attack": [
            {
                "defence": "sfm",
                "threat_model": "white_box",
                "attack": "pgd",
                "epsilon": 8.0,
                **quarter,
            }
        ],
    }
    table = comparison_table("cifar10", metrics)
    assert table.columns[1:] == ("clean", "FGSM 8/255", "FGSM 16/255", "PGD 8/255", "PGD 16/255")
    cells = {row.label: [str(cell) for cell in row.cells] for row in table.rows}
    assert list(cells) == [
        "Table 1, Vanilla (black box)",
        "Table 1, FS (black box)",
        "Table 1, Ours (black box)",
        "Table 2, Vanilla (gray box)",
        "Table 2, FS (gray box)",
        "Table 2, Ours (gray box)",
        "Table 7, CIFAR10 (white box)",
    ]
    assert cells["Table 7, CIFAR10 (white box)"] == [
        "50.0% (40.0–60.0), paper 86.2%",
        "not run, paper 51.5%",
        "not run, paper 37.4%",
        "25.0% (20.0–30.0), paper 11.0%",
        "not run, paper 4.7%",
    ]
    assert cells["Table 1, Vanilla (black box)"][:2] == [
        "50.0% (40.0–60.0), paper 87.1%",
        "not run, not in the paper",
    ]
    assert cells["Table 2, FS (gray box)"][0] == "not run, paper 85.0%"


def test_the_caveat_says_that_networks_and_training_differ():
    assert "networks, training and test images differ" in CAVEAT


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
