"""Pure functions on arrays: affine quantization, range estimators, folding algebra, saliency, statistics."""
