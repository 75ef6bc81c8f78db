"""The pages: one per suite, and those that look at several suites."""
