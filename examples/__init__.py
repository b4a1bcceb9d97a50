"""Programs that show what fxcompress does to a model one knows."""
