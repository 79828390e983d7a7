"""The section on what the defence does to images and to perturbations."""

import dataclasses

from sfm_tf.report.ablation_gallery import ablation_gallery
from sfm_tf.report.ablation_table import ablation_table
from sfm_tf.report.figures import ReportFigure, defence_gallery
from sfm_tf.report.mask_statistics import mask_table
from sfm_tf.report.perceived_perturbation import perceived_gallery
from sfm_tf.report.report_inputs import Gallery, ReportInputs
from sfm_tf.report.section import Section
from sfm_tf.report.statements import THREAT_MODEL_NAMES
from sfm_tf.report.tables import attack_name
from sfm_tf.tuning.ablations import COMPLETE

_NO_ATTACK = (
    "No white-box or gray-box images of the defended model are stored, so what the classifier sees "
    "of a perturbation (Figure 1 of the paper) is not shown."
)
_NO_MASKS = "The masks of the evaluated images were not measured."
_NO_ABLATION = (
    "No training without one of the losses was run, so Figure 5 of the paper has no counterpart."
)


def defence_section(inputs: ReportInputs, gallery: Gallery) -> Section:
    """Returns what masks and pre-processing do, as Figures 1, 4 and 5 of the paper show it.

    Args:
        inputs: What the report shows.
        gallery: Its gallery, which is not None.
    """
    arrays = (getattr(gallery, field.name) for field in dataclasses.fields(gallery))
    figures = [_perceived(inputs), defence_gallery("defence", *arrays)]
    lacking = {words: each for words, each in inputs.ablations.items() if words != COMPLETE}
    if lacking:
        complete = inputs.ablations.get(COMPLETE, gallery)
        figures.append(ablation_gallery("ablations", complete, lacking))
    missing = {
        _NO_ATTACK: inputs.perceived is None,
        _NO_MASKS: inputs.masks is None,
        _NO_ABLATION: not lacking,
    }
    return Section(
        "What the defence does",
        tuple(sentence for sentence, is_missing in missing.items() if is_missing),
        (
            *(() if inputs.masks is None else (mask_table(inputs.masks),)),
            *((ablation_table(inputs.ablation_scores),) if inputs.ablation_scores else ()),
        ),
        tuple(figure for figure in figures if figure is not None),
    )


def _perceived(inputs: ReportInputs) -> ReportFigure | None:
    if inputs.perceived is None:
        return None
    attacked = inputs.perceived.attacked
    attack = f"{attack_name(attacked.attack)}, {THREAT_MODEL_NAMES[attacked.threat_model]}"
    return perceived_gallery("perceived", attack, inputs.perceived, inputs.evaluation.norm)
