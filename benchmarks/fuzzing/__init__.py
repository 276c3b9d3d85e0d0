"""Transformer blocks in random spellings, blocks broken in known ways, and what opfuse owes them."""
