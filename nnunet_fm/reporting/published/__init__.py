"""Published numbers of the two comparisons behind this project, as tables."""

from nnunet_fm.reporting.published.published import (
    STUDIES,
    PublishedStudy,
    beside,
    dataset_key,
    published_architectures,
    published_cells,
    published_results,
    published_summary,
)

__all__ = [
    "STUDIES",
    "PublishedStudy",
    "beside",
    "dataset_key",
    "published_architectures",
    "published_cells",
    "published_results",
    "published_summary",
]
