"""Figures for papers, and reports as single HTML files.

Data are gathered first, as plain values; drawing is separate.
"""
