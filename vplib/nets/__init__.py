"""Networks: small models, many as one, their training."""
