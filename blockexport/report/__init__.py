"""One HTML file that says what a bundle is worth: quality against depth and latency, parity, sizes, provenance."""

from blockexport.report.plots import save_ladder_plot
from blockexport.report.switching import measure_switching
from blockexport.report.write import write_report

__all__ = ["measure_switching", "save_ladder_plot", "write_report"]
