"""The captured program: capture, canonical form, queries, edits, execution, printing and the archive."""
