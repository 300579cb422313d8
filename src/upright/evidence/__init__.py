"""Every number, interval, null and word: the unit table, its bootstrap, statistics, verdicts and gates."""
