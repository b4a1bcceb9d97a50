"""Dimension rules: how each operator relates the dimensions of its inputs and outputs."""
