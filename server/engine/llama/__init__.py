"""The Backend over ctypes_api: llama.cpp."""
