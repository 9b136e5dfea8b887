"""A Blend becomes a model: start with `loop.py`.

One readable decoder, dense or mixture of experts (`model.py`), a data stream by global sample index (`stream.py`),
exact resume (`checkpoint.py`), proxies (`proxies.py`), evaluation, and export to Hugging Face format.
"""
