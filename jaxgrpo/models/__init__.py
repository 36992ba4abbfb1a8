"""Model families: a Hugging Face folder in, one transformer out.

A family (llama.py, gemma3.py, ...) is a small file that translates a config.json and names the
checkpoint's tensors; transformer.py computes all of them.
"""
