"""Torch parts that know no sources: frozen weights, optimizers, losses and networks with derivatives by hand."""
