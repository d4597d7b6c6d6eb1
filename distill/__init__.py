"""The contract between the stages (records, prompts, scores, store, runs, config) and the doors that run them."""
