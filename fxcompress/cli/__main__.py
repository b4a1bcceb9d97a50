"""`python -m fxcompress.cli` is `fxcompress`."""

from __future__ import annotations

from fxcompress.cli.main import main

if __name__ == "__main__":
    main(prog_name="fxcompress")
