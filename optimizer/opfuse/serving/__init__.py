"""What servers have to be told of an engine."""
