"""What a GPU does with all of this, in one report: `python -m blockexport.gpu_report --out report.json`.

Whatever cannot run here says so and why; it never counts as passed. Checks that need no GPU carry `cpu` in their tier.
"""
