"""What fused, what nearly did, and what that is worth: the parts of ``opfuse explain``."""
