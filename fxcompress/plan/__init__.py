"""Decisions as frozen data, and the solvers that make them."""
