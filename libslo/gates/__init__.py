"""Gates: measured runs against limits, answered with pass, fail or inconclusive."""
