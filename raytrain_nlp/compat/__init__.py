"""Private names of libraries, each behind a function of its own."""
