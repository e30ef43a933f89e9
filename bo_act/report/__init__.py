"""What people look at: figures for papers, and reports as one HTML file each.

What a report or a figure shows is gathered first, as plain values; drawing them is apart.
"""
