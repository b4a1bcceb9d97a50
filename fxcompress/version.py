"""The version, for the package's metadata, the command line and the files that it writes."""

VERSION = "0.1.0"
