"""Training around compression: rounds of pruning, masks that hold, regularizers that prepare."""
