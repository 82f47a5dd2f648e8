"""Reports: an evaluation as one HTML file that opens offline.

Python draws all figures. The script of the page sorts and copies tables and selects a metric.
"""

from __future__ import annotations

from cfqa_data.eval.report.page import report_html, write_report

__all__ = ["report_html", "write_report"]
