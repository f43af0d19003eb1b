"""Published numbers judged by arithmetic alone (`python -m harness.audit`)."""

from harness.audit.bounds import Bound, Metric, Row, Sizes, Verdict, judge
from harness.audit.published import PRINTED_NAMES, Published, published

__all__ = [
    "PRINTED_NAMES",
    "Bound",
    "Metric",
    "Published",
    "Row",
    "Sizes",
    "Verdict",
    "judge",
    "published",
]
