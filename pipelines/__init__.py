"""How text moves: the ground floor of Loam, light to import.

Start with `document.py` (what travels), `block.py` (what transforms it), `execute.py` (datatrove's executors) and
`store.py` (how a step is performed once). Then the way itself: `sources.py`, `extract.py`, `normalize.py`, `dedup.py`,
`decontaminate.py`, `tokenizer.py`, `encode.py`; and the way back: `verify.py`, `tracing.py`.
"""
