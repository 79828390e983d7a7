"""What each part of the defence contributes, and how its gradient is best stood in for."""

from typing import Any

from sfm_tf.evaluation.probes.answers import answer
from sfm_tf.evaluation.probes.bench import Bench
from sfm_tf.evaluation.probes.setups import Variant, Variants
from sfm_tf.preprocessors.chain import SURROGATES


def probe_surrogates(bench: Bench, variants: Variants, used: str) -> list[dict[str, Any]]:
    """Returns the model's answers under PGD by each way to get past the pre-processing T.

    Args:
        bench: Where it is measured.
        variants: The model under test.
        used: T's surrogate in the evaluation's white box.

    Returns:
        Entries of `surrogate`, `identity`, `smooth` or `ignored` for an attacker who leaves T out,
        whether it is `used` by the evaluation's white box, and the answers. Empty without T.
    """
    whole, other = variants.whole, variants.other_surrogate
    if other is None:
        return []
    bench.report("PGD by each surrogate of the pre-processing")
    (unused,) = set(SURROGATES) - {used}
    attackers = {
        used: whole,
        unused: other,
        "ignored": Variant(whole.scored, variants.masker_only.attacked),
    }
    return [
        {"surrogate": name, "used": name == used, **answer(bench.right_under_pgd(attacker))}
        for name, attacker in attackers.items()
    ]


def probe_parts(bench: Bench, variants: Variants) -> list[dict[str, Any]]:
    """Returns the answers of the bare classifier, with each part alone, and of the whole.

    Each is attacked in the white box.

    Returns:
        Entries of `masker` and `preprocessor`, whether that part is there, and the answers `clean`
        and `attacked`. A part that the model does not have is not listed.
    """
    bench.report("ablation of the parts")
    rows = {
        (False, False): variants.bare,
        (True, False): variants.masker_only,
        (False, True): variants.preprocessor_only,
        (True, True): variants.whole,
    }
    return [
        {
            "masker": masker,
            "preprocessor": preprocessor,
            "clean": answer(bench.right(variant.scored, bench.samples.images)),
            "attacked": answer(bench.right_under_pgd(variant)),
        }
        for (masker, preprocessor), variant in rows.items()
        if masker <= variants.has_masker and preprocessor <= variants.has_preprocessor
    ]
