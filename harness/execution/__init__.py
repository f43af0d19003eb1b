"""Where and how cells are run."""
