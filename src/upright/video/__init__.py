"""Video: clips of rigid bodies, simulated, drawn, read, tracked, and judged by the laws of mechanics."""
