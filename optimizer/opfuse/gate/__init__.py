"""What opfuse.lock pins of a model, and how a run is held against it."""
