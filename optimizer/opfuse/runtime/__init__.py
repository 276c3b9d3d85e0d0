"""Finds and runs what opfuse builds: the plugin library and its C ABI."""
