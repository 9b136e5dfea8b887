"""What to keep: pure scoring functions inside thin blocks.

Start with `verdict.py`. Heuristic rules are `text_stats.py` (kernels), `rules.py` (thresholds) and `heuristics.py` (the
block); then `language.py`, `pii.py`, `quality.py`, and `perplexity.py` with `buckets.py`.
"""
