"""fxcompress: make trained PyTorch models smaller and faster, and prove it."""
