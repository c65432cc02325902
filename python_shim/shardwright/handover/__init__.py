"""Weights from a trainer to whoever runs the model: the export without files."""
