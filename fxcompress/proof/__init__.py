"""The oracles: what a rewritten model must still compute."""
