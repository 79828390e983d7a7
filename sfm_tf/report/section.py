"""What every part of a report is."""

import dataclasses

from sfm_tf.report.figures import ReportFigure
from sfm_tf.report.tables import Table


@dataclasses.dataclass(frozen=True)
class Section:
    """One section: a heading, then paragraphs, tables and figures in this order.

    Attributes:
        title: The heading.
        paragraphs: Plain text.
        tables: Tables.
        figures: Figures.
    """

    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[ReportFigure, ...] = ()
