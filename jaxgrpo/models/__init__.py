"""Model families: Hugging Face folders in, one transformer out. A family is a small file beside `transformer.py`."""
