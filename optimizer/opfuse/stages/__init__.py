"""The stages, one file each; pipeline.py knows their order."""
