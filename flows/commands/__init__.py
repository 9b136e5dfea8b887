"""The verbs of `loam`, in groups; each module has a `register(app)`."""
