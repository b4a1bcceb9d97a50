"""The dimension algebra: what each position of each tensor dimension is coupled with. Knows no graph."""
