"""The model in the box: a small trained Gemma 4 checkpoint, and a sound, a picture and a film to show it.

`checkpoint/` is as transformers writes it; `media/` holds `sentence.wav`, `scene.jpg`, `film.mp4`, and in
`truth.json` what is asked about each and what is true. All of it is made by `examples/demo_model/`.
"""
