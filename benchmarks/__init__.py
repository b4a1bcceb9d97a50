"""What fxcompress promises about speed and size, measured."""
