"""Transformer blocks in random spellings, blocks broken in known ways, and the judge of both."""
