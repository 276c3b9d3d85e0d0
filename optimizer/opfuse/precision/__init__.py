"""Which operators compute in fp16 or bf16, and where the few Casts between them stand."""
