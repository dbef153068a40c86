"""How much of one model another keeps: divergence, agreement and perplexity on text, sound and pictures.

`scores.py` compares logits, `samples.py` finds what to compare them on, `evaluate.py` runs the models.
"""
