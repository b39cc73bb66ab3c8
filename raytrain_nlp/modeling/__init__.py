"""Model and tokenizer of a job: loaded or built, with LoRA, exported as a plain Hugging Face folder."""
