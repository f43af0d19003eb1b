"""Prepared data sets, and the batches cut out of them."""
