"""New text from old, verified: start with `generate.py`.

Engines behind one protocol (`protocol.py`), an append-only response log, prompts as files, and verification whose
rejections are counted by reason.
"""
