"""Which models of transformers the decoder computes, family by family: configuration and names of tensors."""
