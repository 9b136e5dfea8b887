"""The whole way: start with `graph.py`, then the steps in `steps/`.

`runner.py` performs the steps of a recipe once, `prefect_runner.py` under Prefect's eyes; `cli.py` is the `loam`
command; `show.py`, `report.py`, `publish.py` and `tracing.py` tell what came out and where it came from.
"""
