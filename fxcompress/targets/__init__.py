"""What a runtime can do, as data; one file per runtime."""
