"""Settings of the models."""

import dataclasses

from sfm_tf.settings import Settings, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """The classifier F, the masker G and the pre-processing T."""

    classifier: str = setting(
        "resnet18",
        "Architecture of the classifier.",
        choices=("resnet18", "resnet20", "resnet50"),
    )
    classifier_width: int = setting(64, "Channels of the classifier's first stage.", minimum=4)
    masker_width: int = setting(32, "Channels of the Attention U-Net's first level.", minimum=4)
    masker_depth: int = setting(
        3, "How often the Attention U-Net halves the resolution.", minimum=1, maximum=6
    )
    mask_bias: float = setting(
        0.0,
        "Initial bias of the mask's sigmoid; with 2 the mask starts at 0.88.",
        minimum=-20.0,
        maximum=20.0,
    )
    preprocessor: str = setting(
        "bit_depth_4",
        "Pre-processing T: bit_depth_B, median_W, non_local_means_SEARCH_TEMPLATE_STRENGTH, a "
        "chain of these joined by '+', or none.",
    )
    surrogate: str = setting(
        "identity", "Gradient used in place of T's own (BPDA).", choices=("identity", "smooth")
    )
