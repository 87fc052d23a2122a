"""The `Backend` over llama.cpp, which it calls through `ctypes_api`."""
