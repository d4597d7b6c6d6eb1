"""Training a judge by distillation, and turning the result into something to deploy."""
