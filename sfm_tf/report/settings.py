"""Settings of the stage `report`."""

import dataclasses

from sfm_tf.settings import Settings, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig(Settings):
    """What `pipelines.report` shows beside the tables."""

    gallery_examples: int = setting(8, "Images in each figure.", minimum=1, maximum=64)
