"""Coverage-guided fuzzing: `targets` are the fuzzed functions, `run` is the fuzzer."""
