"""Reports: an evaluation as one HTML file that opens offline.

Python draws everything; the page's script only sorts tables and shows one metric at a time.
"""

from __future__ import annotations

from cfqa_data.eval.report.page import report_html, write_report

__all__ = ["report_html", "write_report"]
