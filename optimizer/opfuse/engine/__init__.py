"""The engine builders: one file a backend, and the only place that imports TensorRT."""
