"""Measures which pre-processing T keeps accuracy in the gray box behind one trained masker.

    python -m benchmarks.gray_box --workdir=runs/cifar10
    python -m benchmarks.gray_box --workdir=runs/cifar10 --preprocessors=none,bit_depth_4,median_3
    python -m benchmarks.gray_box --workdir=runs/cifar10 --trained=runs/cifar10/ablate/.../complete

T is exchanged at test time; classifier and masker stay as `pipelines.train` left them. PGD attacks
an independent source model (black box), the model without T (gray box) and the whole model (white
box, T by its BPDA surrogate).

The other columns are about the gradient of the loss at clean images: its median norm, from the
classifier's input back to the image, and the share of images where it is zero. A row that is
accurate only because the gradient is zero shows a blocked attack, not a defence (Athalye et al.
2018). The attacker in the gray box uses the gradients of the row without T.

--output writes the same figures as JSON.
"""

import argparse
import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.audit.probes.stage_gradients import gradient_health
from sfm_tf.evaluation.adversarial_store import AdversarialStore
from sfm_tf.evaluation.job import EvaluationJob
from sfm_tf.evaluation.metrics import Metrics, summarise
from sfm_tf.evaluation.results import UNDEFENDED
from sfm_tf.evaluation.runner import run_evaluation
from sfm_tf.evaluation.samples import Samples, check_samples
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.records.schema import read_schema
from sfm_tf.records.tfrecords import load_split
from sfm_tf.training.model_files import load_defended_model, load_source_model

PREPROCESSORS = (
    "none",
    "bit_depth_4",
    "bit_depth_3",
    "bit_depth_2",
    "median_2",
    "median_3",
    "non_local_means_13_3_4",
    "non_local_means_13_3_10",
    "bit_depth_4+median_2+non_local_means_13_3_4",
)
"""Those of Yu et al. 2022, some stronger, and a chain."""

_THREAT_MODELS = ("black_box", "gray_box", "white_box")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and writes the JSON."""
    options = _parser().parse_args(arguments)
    run_directory = RunDirectory(options.workdir)
    trained = options.trained or run_directory.latest("train").folder
    records = run_directory.latest("ingest").folder
    images, labels = load_split(records, "test", read_schema(records), options.num_examples)
    defended = load_defended_model(trained)
    samples = check_samples(images, labels, defended.classifier)
    models = _models(defended, options.preprocessors.split(","))
    metrics = _metrics(models, load_source_model(trained), samples, options)
    rows = [
        {
            "defence": name,
            **_accuracies(metrics, name),
            "gradients": _gradients(model, samples),
        }
        for name, model in models.items()
    ]
    settings = {name: getattr(options, name) for name in ("epsilon", "iterations", "seed")}
    document = {**settings, "num_examples": len(samples), "rows": rows}
    _print(document)
    if options.output:
        write_json(options.output, document)


def _models(trained: DefendedModel, names: Sequence[str]) -> dict[str, DefendedModel]:
    """Returns the bare classifier, and the masker before each T."""
    parts = trained.classifier, trained.masker
    defended = {f"sfm, {name}": DefendedModel(*parts, parse_preprocessor(name)) for name in names}
    return {UNDEFENDED: DefendedModel(trained.classifier), **defended}


def _metrics(
    models: Mapping[str, DefendedModel],
    source: keras.Model,
    samples: Samples,
    options: argparse.Namespace,
) -> Metrics:
    """Returns the accuracies of all models under PGD."""
    config = EvaluationConfig(
        attacks=("pgd",),
        threat_models=_THREAT_MODELS,
        epsilons=(options.epsilon,),
        step_size=options.epsilon / 4,
        iterations=options.iterations,
    )
    with tempfile.TemporaryDirectory() as folder:
        job = EvaluationJob(
            models=models,
            source=source,
            samples=samples,
            config=config,
            seed=options.seed,
            store=AdversarialStore(pathlib.Path(folder)),
            progress=lambda *_: None,
        )
        return summarise(run_evaluation(job).results)


def _accuracies(metrics: Metrics, defence: str) -> dict[str, float]:
    """Returns the accuracy on clean images and under each threat model."""
    entries = [entry for entry in metrics.under_attack if entry.defence == defence]
    clean = metrics.clean_accuracy(defence)
    return {"clean": clean.accuracy, **{entry.threat_model: entry.accuracy for entry in entries}}


def _gradients(model: DefendedModel, samples: Samples) -> dict[str, dict[str, Any]]:
    """Returns what is left of the gradient at each stage, by its name."""
    health = gradient_health(model, samples, batch_size=100)
    entries = [dataclasses.asdict(stage) for stage in health.stages]
    return {entry.pop("stage"): entry for entry in entries}


def _print(document: Mapping[str, Any]) -> None:
    print(
        f"PGD-{document['iterations']} at {document['epsilon']:g}/255, "
        f"{document['num_examples']} test images; median norms of the gradient at clean images"
    )
    print(
        f"{'defence':50} {'clean':>6} {'black':>6} {'gray':>6} {'white':>6} "
        f"{'F input':>9} {'masked':>9} {'image':>9} {'zero':>6}"
    )
    for row in document["rows"]:
        accuracies = [row[name] for name in ("clean", *_THREAT_MODELS)]
        stages = row["gradients"]
        norms = [
            stages[name]["median_norm"] for name in ("classifier_input", "masked_image", "image")
        ]
        print(
            f"{row['defence']:50} "
            + " ".join(f"{value:6.3f}" for value in accuracies)
            + " "
            + " ".join(f"{value:9.3g}" for value in norms)
            + f" {stages['image']['zero_share']:6.3f}"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gray_box",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        required=True,
        help="Working directory with a finished training.",
    )
    parser.add_argument(
        "--trained", type=pathlib.Path, help="Folder of the models; by default the last training."
    )
    parser.add_argument(
        "--preprocessors", default=",".join(PREPROCESSORS), help="Pre-processings T to try."
    )
    parser.add_argument("--num_examples", type=int, default=500, help="Number of test images.")
    parser.add_argument("--epsilon", type=float, default=8.0, help="Radius, in 1/255.")
    parser.add_argument("--iterations", type=int, default=30, help="Steps of PGD.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of PGD's starts.")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write.")
    return parser


if __name__ == "__main__":
    main()
