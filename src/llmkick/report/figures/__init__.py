"""Figures of the report, as Vega-Lite charts."""
