"""Language models: causal, masked and permutation; chats, and filling in the middle."""
