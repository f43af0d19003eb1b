"""`python -m harness.prepare features`: command line, one share of the work, jobs of a cluster."""
