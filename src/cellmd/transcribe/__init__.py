"""Recordings of any length to text. Needs the extra `transcribe`."""
