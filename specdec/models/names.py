"""Names of tensors that more than one module needs."""

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
