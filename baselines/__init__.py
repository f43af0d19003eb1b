"""The paper's 16 baselines, one file each."""
