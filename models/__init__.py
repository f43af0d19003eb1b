"""The paper's model, and the interface of all methods."""
