"""One self-contained HTML page about a score table and a selection."""

from qaq_jax.report.page import write_report

__all__ = ['write_report']
