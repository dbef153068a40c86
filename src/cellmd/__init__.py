"""Gemma 4 in one INT4 file: text, sound, pictures and films, on the machine in front of you."""

__version__ = "0.1.0"
