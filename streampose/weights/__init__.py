"""The bundled models: a folder each, with manifest, graphs and card."""
