"""The graph: patterns and their matcher, symbolic shapes, rewriting, and what a model must be."""
