"""The steps of a run, in the order of the way: build, language_model, mixing, training, publishing."""
