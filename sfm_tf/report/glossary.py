"""The words of the field that reports use, each in one or two sentences."""

from collections.abc import Mapping

GLOSSARY: Mapping[str, str] = {
    "black box": "The attacker does not know the model. It attacks a model of its own, trained on "
    "the same kind of images, and hopes that the images it finds break this one too.",
    "gray box": "The attacker knows the classifier, and the masker if there is one, but not the "
    "pre-processing T or the other defences in front of it.",
    "white box": "The attacker knows everything: classifier, defence and their weights. Only this "
    "attacker can show that a defence holds.",
    "adaptive": "A white-box attack made for this defence: it aims at one part of the defence, "
    "such as the mask, instead of attacking the whole model as any other.",
    "BPDA": "Backward pass differentiable approximation (Athalye et al. 2018). Where a defence has "
    "no useful gradient, such as rounding, the attack uses the gradient of a stand-in instead.",
    "EOT": "Expectation over transformation (Athalye et al. 2018). Where a defence draws random "
    "numbers, the attack averages the gradient over many draws.",
    "radius ε": "How far an attack may change an image: every pixel value by at most ε (L∞), or "
    "all of them together by at most ε (L2). Values are in 1/255, one step of an 8-bit image.",
    "worst case": "Accuracy where an image counts as right only if the model is right on it "
    "without an attack and after every attack of the group.",
    "audit": "Checks of the evaluation itself: whether the attacks were strong enough and ran as "
    "they should, so that the accuracies can be believed.",
    "blessed": "The evaluation met every threshold, so the model may be served. The file BLESSED "
    "or NOT_BLESSED says so, and only a blessed model is exported.",
}
"""Words with their meanings."""


def glossary_document() -> str:
    """Returns the glossary as the Markdown of `docs/glossary.md`."""
    entries = (f"**{word}**: {meaning}\n" for word, meaning in GLOSSARY.items())
    return "# Glossary\n\n" + "\n".join(entries)
