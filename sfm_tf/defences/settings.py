"""Settings of the defences that the masker is compared with."""

import dataclasses

from sfm_tf.settings import Settings, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedConfig(Settings):
    """The defences that the masker is compared with, and what `pipelines.fit_defences` fits."""

    feature_squeezing: str = setting(
        "bit_depth_5+median_2+non_local_means_13_3_2",
        "Feature squeezing (Xu et al. 2018): a chain of squeezers. The detector uses each of them.",
    )
    tvm: str = setting(
        "total_variation_50_30",
        "Total variation minimisation (Guo et al. 2018): total_variation_DROPPED_WEIGHT, with the "
        "share of dropped values in per cent and the weight in thousandths.",
    )
    quilting: str = setting(
        "quilting_1",
        "Image quilting (Guo et al. 2018): quilting_NEIGHBOURS. Each patch is drawn from this many "
        "nearest patches.",
    )
    pixel_defend: str = setting(
        "pixel_defend_16",
        "PixelDefend (Song et al. 2018): pixel_defend_EPSILON, the largest change in 1/255.",
    )
    sensitivity: str = setting(
        "sensitivity_10",
        "Completion of sensitive points (Zhao et al. 2021): sensitivity_SHARE in per cent.",
    )
    jpeg: str = setting("jpeg_75", "JPEG compression: jpeg_QUALITY.")
    quilting_patches: int = setting(
        20_000, "Number of training patches in quilting's database.", minimum=1
    )
    pixel_cnn_width: int = setting(32, "Channels of the PixelCNN++ of PixelDefend.", minimum=4)
    pixel_cnn_depth: int = setting(4, "Residual blocks of the PixelCNN++.", minimum=1, maximum=32)
    pixel_cnn_mixtures: int = setting(
        5, "Logistic components of the PixelCNN++'s mixture.", minimum=1
    )
    pixel_cnn_epochs: int = setting(20, "Training epochs of the PixelCNN++.", minimum=1)
    pixel_cnn_batch_size: int = setting(
        64, "Images per training step of the PixelCNN++.", minimum=1
    )
    pixel_cnn_learning_rate: float = setting(
        1e-3, "Peak learning rate of the PixelCNN++.", minimum=0.0
    )
