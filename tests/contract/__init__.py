"""Contract tests: one suite for every backend of a seam."""
