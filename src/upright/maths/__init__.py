"""Mathematics: pure functions of arrays, without config, files or logging."""
