"""Conversion that has seen the model at work: codes are chosen for the inputs that each matrix gets.

`material.py` finds what to calibrate on, `streams.py` runs the source and the growing stored model side by side,
`calibrate.py` goes through the model.
"""
