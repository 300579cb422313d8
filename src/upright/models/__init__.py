"""Models that methods train: plain `torch.nn.Module`, no config, no training loop."""
