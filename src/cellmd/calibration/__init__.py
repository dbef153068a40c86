"""Conversion that has seen the model at work: codes are chosen for the inputs that each matrix gets.

`text.py` finds calibration text, `streams.py` runs the source and the growing stored model side by side, `calibrate.py`
goes through the layers.
"""
