"""The vocabulary of the compiler: one file per pass, each an edit without policy."""
