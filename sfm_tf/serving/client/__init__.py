"""A client of a served model over TensorFlow Serving's REST or gRPC interface."""
